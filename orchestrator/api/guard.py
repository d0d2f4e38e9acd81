"""Who may talk to the TCP listener. The Unix socket needs none of this: its mode 0600 is the guard.

- The Host header must name this machine, or a web page could reach the API by rebinding its own name to 127.0.0.1.
- A bearer token, compared in constant time, on everything but GET /metrics from loopback and the console's static
  files, which hold no data.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
CONSOLE_PATH = "/console"


def host_name(header: str) -> str:
    """The host of a Host header without its port: "[::1]:80" -> "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().rstrip(".")


class Guard:
    """ASGI middleware of the TCP listener. `hosts` are further names under which this machine is known."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str] = ()) -> None:
        if len(token) < 16:
            raise ValueError("the API token must have at least 16 characters")
        self._app = app
        self._token = token.encode()
        self._hosts = LOOPBACK_HOSTS | {h.lower() for h in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if host_name(headers.get("host", "")) not in self._hosts:
            body = {"error": "The Host header does not name this machine.", "hint": "use http://127.0.0.1:PORT"}
            return JSONResponse(body, status_code=421)
        if self._open(scope) or self._authorized(headers.get("authorization", "")):
            return None
        body = {"error": "A bearer token is needed.", "hint": "send the one in the file api-token of the state folder"}
        return JSONResponse(body, status_code=401, headers={"WWW-Authenticate": "Bearer"})

    def _authorized(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer"

    def _open(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        path = scope["path"]
        if path == CONSOLE_PATH or path.startswith(CONSOLE_PATH + "/"):
            return True
        return path == "/metrics" and _from_loopback(scope)


def _from_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
