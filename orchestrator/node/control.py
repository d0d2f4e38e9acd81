"""The socket by which a node's agent finds the supervisor again: one JSON line asked, one answered.

{"op": "ping"}       {"node", "pid", "boot_id", "life", "connected", "workers", "standby_ready"}
{"op": "shutdown"}   {"ok": true}, then the supervisor ends what it holds, and itself
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from orchestrator.node.lines import Line
from orchestrator.node.paths import control_socket

MAX_REQUEST_BYTES = 4096
REQUEST_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class ControlServer:
    """`describe` answers a ping, `shut_down` is called with a reason."""

    def __init__(
        self, path: Path, *, describe: Callable[[], dict[str, object]], shut_down: Callable[[str], object]
    ) -> None:
        self._path = path
        self._describe = describe
        self._shut_down = shut_down
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Whatever lies at the path is of a supervisor that is gone: the caller holds the node's lock."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=MAX_REQUEST_BYTES)
        self._path.chmod(0o600)

    def close(self) -> None:
        if self._server:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await anext(aiter(line.received()), b"")
            if line.peer()[1] == os.geteuid():
                line.send(self._answer(request))
        except (ValueError, TimeoutError) as error:
            log.warning("control request refused", why=str(error) or "it did not come in time")
        finally:
            line.close()

    def _answer(self, raw: bytes) -> dict[str, object]:
        request = json.loads(raw or b"{}")
        match request.get("op") if isinstance(request, dict) else None:
            case "ping":
                return self._describe()
            case "shutdown":
                asyncio.get_running_loop().call_soon(self._shut_down, "asked on the control socket")
                return {"ok": True}
        return {"error": "ops are ping and shutdown"}


def ping(sockets: Path, node: str, timeout_s: float = 1.0) -> dict[str, Any] | None:
    """What the node's supervisor, with its sockets in this folder, says of itself; None when none answers."""
    return _ask(control_socket(sockets, node), {"op": "ping"}, timeout_s)


def shut_down(sockets: Path, node: str, timeout_s: float = 1.0) -> bool:
    """Asks the node's supervisor to end; True when it has agreed."""
    answer = _ask(control_socket(sockets, node), {"op": "shutdown"}, timeout_s)
    return answer is not None and answer.get("ok") is True


def _ask(path: Path, request: dict[str, object], timeout_s: float) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(sock.makefile("rb").readline(MAX_REQUEST_BYTES) or b"null")
        except (OSError, ValueError):
            return None
    return answer if isinstance(answer, dict) else None
