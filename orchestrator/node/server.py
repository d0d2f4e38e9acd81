"""The Unix socket on which the node's trainers and stores talk to the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from orchestrator.node import protocol
from orchestrator.node.crew import Crew
from orchestrator.node.lines import MAX_LINE_BYTES, Line
from orchestrator.node.stores import Stores
from orchestrator.node.worker import Worker

log = structlog.get_logger(__name__)


class WorkerServer:
    """Hands what comes to the crew and the stores. A line that can't be understood is passed over, not its sender."""

    def __init__(self, path: Path, crew: Crew, stores: Stores) -> None:
        self._path = path
        self._crew = crew
        self._stores = stores
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. Whatever lies at the path is of a supervisor that is gone: the caller holds the node's lock."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=MAX_LINE_BYTES)
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        conversation = _Conversation(Line(reader, writer), self._crew, self._stores)
        try:
            await conversation.run()
        except ValueError as error:
            log.warning("worker cut off", why=f"a line of more than {MAX_LINE_BYTES} bytes", error=str(error))
        except asyncio.CancelledError:
            # Only `close` cancels; the stream server would log the cancellation as an error.
            pass
        except Exception:
            log.exception("worker line failed")
        finally:
            self._tasks.discard(task)
            conversation.end()
            writer.transport.abort()


class _Conversation:
    """One connection: a hello makes it a trainer's, a store message a store's."""

    def __init__(self, line: Line, crew: Crew, stores: Stores) -> None:
        self._line = line
        self._crew = crew
        self._stores = stores
        self._worker: Worker | None = None

    async def run(self) -> None:
        async for raw in self._line.received():
            try:
                said = protocol.decode(raw)
            except protocol.ProtocolError as error:
                log.warning("worker not understood", why=str(error), line=raw[:200].decode("utf-8", "replace"))
                continue
            if said is not None and not self._take(said):
                return

    def _take(self, said: protocol.Message) -> bool:
        """False when the connection is to be closed."""
        if isinstance(said, protocol.Store):
            return self._stores.take(self._line, said)
        if isinstance(said, protocol.Hello):
            if said.version != protocol.PROTOCOL_VERSION:
                log.error("worker refused", why=f"it speaks version {said.version}", run=said.run, rank=said.rank)
                return False
            self._worker = self._crew.greet(self._line, said)
            return self._worker is not None
        if self._worker is None:
            log.warning("worker refused", why=f"{type(said).__name__} before hello")
            return False
        self._crew.take(self._worker, said)
        return True

    def end(self) -> None:
        worker = self._worker
        if worker and worker.line is self._line:
            worker.line = None
            worker.line_closed.set()
        with contextlib.suppress(OSError):
            self._line.close()
