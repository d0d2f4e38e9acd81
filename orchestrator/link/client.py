"""The supervisor's end of the link: one connection to the daemon, made again for as long as the supervisor lives.

A report is kept until the daemon acknowledges it and sent again, in the order of cursors, on each new connection. What
is only the latest of something (statuses) or an answer (log chunks) is not kept: the next Hello says what lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from orchestrator.link.auth import AuthError, prove_to_daemon
from orchestrator.link.endpoint import Endpoint, EndpointError, read_endpoint
from orchestrator.link.frames import FrameError, Wire
from orchestrator.link.messages import BEAT_INTERVAL_S, Ack, Beat, Hello, LogChunk, ToSupervisor, WorkerStatuses
from orchestrator.link.outbox import Outbox
from orchestrator.recovery.events import AnyEvent

RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
CONNECT_TIMEOUT_S = 2.0
SILENCE_S = 3.0

log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(ToSupervisor)


class Client:
    """Keeps the line to whichever daemon the endpoint file names.

    `hello` is asked at each connection; `deliver` gets every message but Beat and Ack, in the event loop's thread.
    `clock` gives monotonic nanoseconds.
    """

    def __init__(
        self,
        *,
        endpoint: Path,
        key: bytes,
        hello: Callable[[], Hello],
        deliver: Callable[[ToSupervisor], None],
        outbox: Outbox | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._endpoint = endpoint
        self._key = key
        self._hello = hello
        self._deliver = deliver
        self.outbox = outbox or Outbox()
        self._clock = clock
        self._wire: Wire | None = None
        self._heard_ns = 0
        self._broken = ""  # why this end broke the line

    @property
    def connected(self) -> bool:
        return self._wire is not None

    def report(self, event: AnyEvent, *, observed_ns: int = 0, fault_ns: int = 0) -> None:
        """Keeps the event for the daemon and sends it at once if there is one. Times on this client's clock."""
        now_ns = self._clock()
        entry = self.outbox.put(event, observed_ns=observed_ns or now_ns, fault_ns=fault_ns)
        if self._wire:
            self._wire.send(entry.report(now_ns))

    def send(self, message: WorkerStatuses | LogChunk) -> bool:
        """False when there is no daemon: the message is gone."""
        return self._wire is not None and self._wire.send(message)

    def disconnect(self, why: str) -> None:
        """Breaks the line; the address is read again before the next try."""
        if self._wire:
            self._broken = why
            self._wire.abort()

    async def settle(self, timeout_s: float) -> bool:
        """Waits until every report is acknowledged; False when the time was over first."""
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        while len(self.outbox) and self._clock() < deadline_ns:
            await asyncio.sleep(0.005)
        return not len(self.outbox)

    async def flush(self, timeout_s: float) -> None:
        """Waits until the kernel has taken what was sent."""
        if self._wire:
            await self._wire.flush(timeout_s)

    async def run(self) -> None:
        """Connects and serves until cancelled."""
        delay_s = RETRY_MIN_S
        last_why = ""
        while True:
            try:
                why = await self._session()
                delay_s, last_why = RETRY_MIN_S, ""
            except (OSError, EOFError, FrameError, AuthError, EndpointError, TimeoutError) as error:
                why = str(error) or "no answer in time"
            if why != last_why:
                log.info("no daemon", why=why)
            last_why = why
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)

    async def _session(self) -> str:
        """One connection, from its making to its end. Raises when it was not made; returns why it ended."""
        endpoint = read_endpoint(self._endpoint)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        try:
            await prove_to_daemon(reader, writer, self._key)
            return await self._converse(Wire(reader, writer), endpoint)
        finally:
            self._wire = None
            writer.transport.abort()

    async def _converse(self, wire: Wire, endpoint: Endpoint) -> str:
        wire.send(self._hello())
        now_ns = self._clock()
        for entry in self.outbox.entries():
            wire.send(entry.report(now_ns))
        self._wire, self._heard_ns, self._broken = wire, now_ns, ""
        log.info("daemon found", host=endpoint.host, port=endpoint.port, resent=len(self.outbox))
        beats = asyncio.create_task(self._beat(wire, endpoint))
        try:
            while True:
                self._take(await wire.receive(_decoder))
        except (OSError, EOFError, FrameError) as error:
            return self._broken or str(error)
        finally:
            beats.cancel()

    def _take(self, message: ToSupervisor) -> None:
        match message:
            case Beat():
                self._heard_ns = self._clock()
            case Ack(cursor=cursor):
                self.outbox.acknowledge(cursor)
            case _:
                try:
                    self._deliver(message)
                except Exception:
                    log.exception("message failed", message=type(message).__name__)

    async def _beat(self, wire: Wire, endpoint: Endpoint) -> None:
        while wire.send(Beat(sent_ns=self._clock())):
            await asyncio.sleep(BEAT_INTERVAL_S)
            if self._clock() - self._heard_ns > SILENCE_S * 1e9:
                self.disconnect(f"no beat of the daemon for {SILENCE_S:.0f} s")
            elif self._moved(endpoint):
                self.disconnect("the daemon's address changed")

    def _moved(self, endpoint: Endpoint) -> bool:
        try:
            return read_endpoint(self._endpoint) != endpoint
        except EndpointError:
            # A file that is gone for now names no other daemon.
            return False
