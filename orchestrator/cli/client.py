"""The daemon's API over its Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cli.errors import CliError, Exit

TIMEOUT_S = 30.0
CODES = {404: Exit.NOT_FOUND, 422: Exit.INVALID_SPEC}


class Client:
    """Calls that return decoded JSON. Raises CliError with the exit code that fits."""

    def __init__(self, socket: Path) -> None:
        import httpx

        self.socket = socket
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost", timeout=TIMEOUT_S
        )

    def get(self, path: str, **query: Any) -> Any:
        return self._call("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call("POST", path, json=body or {})

    def _call(self, method: str, path: str, **more: Any) -> Any:
        with self._no_daemon():
            response = self._http.request(method, path, **more)
        if response.is_success:
            return response.json()
        try:
            body = response.json()
        except ValueError:
            raise CliError(f"The daemon answered {response.status_code} to {method} {path}.") from None
        raise _failure(response.status_code, body)

    @contextmanager
    def _no_daemon(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError:
            raise CliError(
                f"No daemon answers at {self.socket}.", "start one with `holdfast up`", Exit.NO_DAEMON
            ) from None
        except httpx.TimeoutException:
            raise CliError(
                f"The daemon at {self.socket} gave no answer in {TIMEOUT_S:.0f} s.", code=Exit.NO_DAEMON
            ) from None
        except httpx.TransportError as error:
            raise CliError(f"The line to the daemon broke: {error}.", code=Exit.NO_DAEMON) from None


def _failure(status: int, body: dict[str, Any]) -> CliError:
    message, hint = body.get("error", "The daemon refused."), body.get("hint", "")
    if body.get("errors"):
        from orchestrator.spec.errors import SpecError

        message = "\n".join(SpecError(**e).render() for e in body["errors"])
    return CliError(message, hint, CODES.get(status, Exit.ERROR))


def quoted(name: str) -> str:
    """A name as one segment of a path, whatever the user typed."""
    from urllib.parse import quote

    return quote(name, safe="") or "%20"
