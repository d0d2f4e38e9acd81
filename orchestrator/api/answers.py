"""Reading requests and writing answers: JSON through msgspec, with mistakes told as sentences."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.errors import ApiError, NotFoundError
from orchestrator.api.service import Service
from orchestrator.recovery.state import NodeState, RunState

MAX_BODY_BYTES = 2 << 20
MAX_INTEGER = 1 << 62

Body = TypeVar("Body", bound=msgspec.Struct)


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON; a figure that is not finite becomes null."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def service_of(request: Request) -> Service:
    return request.app.state.service


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's JSON as `kind`. Raises ApiError: too large, not JSON, unknown or missing or wrong fields."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise ApiError(f"The request is larger than {MAX_BODY_BYTES} bytes.")
    try:
        return msgspec.json.decode(bytes(data) or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(
            f"The request's body is wrong: {error}.", f"fields: {', '.join(kind.__struct_fields__)}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(f"The request's body is not JSON: {error}.") from None


def integer(request: Request, name: str, default: int) -> int:
    """A whole number >= 0 of the query. Raises ApiError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > MAX_INTEGER:
        raise ApiError(f"'{name}' must be a whole number from 0, not '{text[:40]}'.")
    return int(text)


def run_of(request: Request, run: str | None = None) -> RunState:
    """The run named by the path. Raises NotFoundError."""
    name = run if run is not None else request.path_params["run"]
    return _found(service_of(request).state().runs, "run", name)


def node_of(request: Request, node: str | None = None) -> NodeState:
    """The node named by the path. Raises NotFoundError."""
    name = node if node is not None else request.path_params["node"]
    return _found(service_of(request).state().nodes, "node", name)


def _found(items: Any, what: str, name: str) -> Any:
    item = items.get(name)
    if item is not None:
        return item
    near = difflib.get_close_matches(name, sorted(items), n=1)
    known = f"known: {', '.join(sorted(items)[:8])}" if items else f"there are no {what}s yet"
    raise NotFoundError(f"There is no {what} '{name}'.", f"did you mean '{near[0]}'?" if near else known)
