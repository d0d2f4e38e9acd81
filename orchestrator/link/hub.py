"""The daemon's end of the links to all node supervisors.

Whoever connects proves the cluster's key and says Hello; anything else is dropped with a log line. Everything runs in
the event loop's thread: no callback of the sink may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec
import structlog

from orchestrator.link.auth import HANDSHAKE_TIMEOUT_S, AuthError, admit_supervisor
from orchestrator.link.frames import FrameError, Wire
from orchestrator.link.messages import (
    BEAT_INTERVAL_S,
    LINK_VERSION,
    Ack,
    Beat,
    Hello,
    LogChunk,
    Report,
    ToDaemon,
    ToSupervisor,
    WorkerStatus,
    WorkerStatuses,
)
from orchestrator.recovery.events import WorkerExited

# Beats are always in flight, so a host that vanished without a word shows as unacknowledged data.
UNACKNOWLEDGED_TIMEOUT_MS = 10_000

log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(ToDaemon)


class HubSink(Protocol):
    """Called in the event loop's thread, in the order of arrival.

    `node_connected` may come for a node that is connected: the new connection has replaced the old one, and no
    `node_disconnected` was called for that. `report` hands on each cursor of a supervisor's life once; call `Hub.ack`
    when it is durable.
    """

    def node_connected(self, hello: Hello) -> None: ...
    def node_disconnected(self, node: str, why: str) -> None: ...
    def report(self, node: str, report: Report) -> None: ...
    def statuses(self, node: str, workers: tuple[WorkerStatus, ...]) -> None: ...
    def beat(self, node: str, at_ns: int) -> None: ...
    def log_chunk(self, node: str, chunk: LogChunk) -> None: ...


class Connection:
    """One supervisor. `last_beat_ns` is on the hub's clock; `statuses` holds the latest by (run, rank)."""

    def __init__(self, hello: Hello, wire: Wire, now_ns: int) -> None:
        self.hello = hello
        self.wire = wire
        self.last_beat_ns = now_ns
        self.statuses = {(worker.run, worker.rank): worker for worker in hello.workers}


class _Cursors:
    """How far a supervisor's reports were handed on and acknowledged, in one life of that supervisor."""

    def __init__(self, life: tuple[str, str, int]) -> None:
        self.life = life
        self.delivered = 0
        self.acknowledged = 0


class Hub:
    """Listens for supervisors. `clock` gives monotonic nanoseconds."""

    def __init__(
        self, *, host: str, port: int, key: bytes, sink: HubSink, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._host, self._port, self._key = host, port, key
        self._sink = sink
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[str, Connection] = {}
        self._cursors: dict[str, _Cursors] = {}

    @property
    def connections(self) -> Mapping[str, Connection]:
        """Connected nodes by name; a live, read-only view."""
        return MappingProxyType(self._connections)

    async def start(self) -> tuple[str, int]:
        """Listens; returns host and port. OSError when the address can't be had."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def close(self) -> None:
        """Ends all connections without a word to the sink."""
        if self._server:
            self._server.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._connections.clear()

    def send(self, node: str, message: ToSupervisor) -> bool:
        """False when the node is not connected. True means sent, not received: answers are reports."""
        connection = self._connections.get(node)
        return connection is not None and connection.wire.send(message)

    def ack(self, node: str, cursor: int) -> bool:
        """All reports of this node up to `cursor` are durable: its supervisor may forget them."""
        if cursors := self._cursors.get(node):
            cursors.acknowledged = max(cursors.acknowledged, cursor)
        return self.send(node, Ack(cursor=cursor))

    def drop(self, node: str) -> None:
        """Breaks the line to a node; its supervisor, if it lives, connects again."""
        if connection := self._connections.get(node):
            connection.wire.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = writer.get_extra_info("peername")
        try:
            await self._serve(reader, writer)
        except (AuthError, FrameError, OSError, EOFError, TimeoutError) as error:
            log.warning("link refused", peer=peer, why=_sentence(error))
        except asyncio.CancelledError:
            # Only `close` cancels; the stream server would log the cancellation as an error.
            pass
        except Exception:
            log.exception("link failed", peer=peer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await admit_supervisor(reader, writer, self._key)
        wire = Wire(reader, writer)
        wire.socket_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_TIMEOUT_MS)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            hello = await wire.receive(_decoder)
        if not isinstance(hello, Hello):
            raise FrameError(f"the first message is {type(hello).__name__}, not Hello")
        if hello.version != LINK_VERSION:
            raise FrameError(
                f"the supervisor of {hello.node} speaks link version {hello.version}, this daemon {LINK_VERSION}: "
                "start that node's supervisor again with this release"
            )
        await self._converse(Connection(hello, wire, self._clock()))

    async def _converse(self, connection: Connection) -> None:
        self._welcome(connection)
        beats = asyncio.create_task(self._send_beats(connection.wire))
        why = "the hub was closed"
        try:
            while True:
                self._take(connection, await connection.wire.receive(_decoder))
        except (FrameError, OSError, EOFError) as error:
            why = _sentence(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            why = f"the daemon failed on a message: {error!r}"
            raise
        finally:
            beats.cancel()
            self._part(connection, why)

    def _welcome(self, connection: Connection) -> None:
        hello = connection.hello
        old = self._connections.get(hello.node)
        self._connections[hello.node] = connection
        if old is not None:
            log.info("link replaced", node=hello.node, pid=hello.pid)
            old.wire.abort()
        life = (hello.life, hello.boot_id, hello.pid)
        cursors = self._cursors.get(hello.node)
        if cursors is None or cursors.life != life:
            self._cursors[hello.node] = _Cursors(life)
        log.info("node connected", node=hello.node, pid=hello.pid, boot_id=hello.boot_id, workers=len(hello.workers))
        self._sink.node_connected(hello)

    def _part(self, connection: Connection, why: str) -> None:
        connection.wire.abort()
        node = connection.hello.node
        if self._connections.get(node) is not connection or why == "the hub was closed":
            return
        del self._connections[node]
        log.info("node disconnected", node=node, why=why)
        self._sink.node_disconnected(node, why)

    def _take(self, connection: Connection, message: ToDaemon) -> None:
        node = connection.hello.node
        if self._connections.get(node) is not connection:
            raise EOFError("replaced by a newer connection")
        match message:
            case Beat():
                connection.last_beat_ns = self._clock()
                self._sink.beat(node, connection.last_beat_ns)
            case WorkerStatuses(workers=workers):
                connection.statuses.update({(worker.run, worker.rank): worker for worker in workers})
                self._sink.statuses(node, workers)
            case Report():
                self._take_report(connection, message)
            case LogChunk():
                self._sink.log_chunk(node, message)
            case Hello():
                raise FrameError("a second Hello on one connection")

    def _take_report(self, connection: Connection, report: Report) -> None:
        node = connection.hello.node
        cursors = self._cursors[node]
        if report.cursor <= cursors.delivered:
            # Sent again after a broken line. If it is not durable yet, its acknowledgement is still to come.
            if report.cursor <= cursors.acknowledged:
                connection.wire.send(Ack(cursor=cursors.acknowledged))
            return
        self._sink.report(node, report)
        cursors.delivered = report.cursor
        if isinstance(report.event, WorkerExited):
            connection.statuses.pop((report.event.run, report.event.rank), None)

    async def _send_beats(self, wire: Wire) -> None:
        with contextlib.suppress(OSError):
            while wire.send(Beat(sent_ns=self._clock())):
                await asyncio.sleep(BEAT_INTERVAL_S)


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the peer did not answer in time"
    if isinstance(error, asyncio.IncompleteReadError):
        return "the peer closed the line"
    return str(error) or type(error).__name__
