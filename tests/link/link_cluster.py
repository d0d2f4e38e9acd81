from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.link.auth import create_key
from orchestrator.link.client import Client
from orchestrator.link.endpoint import Endpoint, write_endpoint
from orchestrator.link.hub import Hub
from orchestrator.link.messages import LINK_VERSION, Hello, LogChunk, Report, WorkerStatus
from orchestrator.recovery.events import AnyEvent


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was awaited did not come"
        await asyncio.sleep(0.005)


class Sink:
    """Writes down what the hub says."""

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.gone: list[tuple[str, str]] = []
        self.reports: list[tuple[str, Report]] = []
        self.worker_statuses: list[WorkerStatus] = []
        self.beats: list[tuple[str, int]] = []
        self.chunks: list[LogChunk] = []

    def node_connected(self, hello: Hello) -> None:
        self.hellos.append(hello)

    def node_disconnected(self, node: str, why: str) -> None:
        self.gone.append((node, why))

    def report(self, node: str, report: Report) -> None:
        self.reports.append((node, report))

    def statuses(self, node: str, workers: tuple[WorkerStatus, ...]) -> None:
        self.worker_statuses.extend(workers)

    def beat(self, node: str, at_ns: int) -> None:
        self.beats.append((node, at_ns))

    def log_chunk(self, node: str, chunk: LogChunk) -> None:
        self.chunks.append(chunk)

    @property
    def events(self) -> list[AnyEvent]:
        return [report.event for _, report in self.reports]


def hello(node: str = "n0", **fields: object) -> Hello:
    given = {"version": LINK_VERSION, "boot_id": "b", "gpus": 8, "pid": 1, "host": "127.0.0.1", "epoch": 0, "life": "l"}
    return Hello(node=node, **{**given, **fields})  # type: ignore[arg-type]


class Cluster:
    """One endpoint file and key, hubs and clients on them, all closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = folder / "endpoint.json"
        self.key = create_key(folder / "key")
        self.hubs: list[Hub] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def hub(self, sink: Sink, *, announce: bool = True) -> Hub:
        hub = Hub(host="127.0.0.1", port=0, key=self.key, sink=sink)
        host, port = await hub.start()
        self.hubs.append(hub)
        hub.address = (host, port)  # type: ignore[attr-defined]
        if announce:
            write_endpoint(self.endpoint, Endpoint(host, port))
        return hub

    def client(self, deliver: Callable[[object], None] = lambda message: None, *, key: bytes = b"", **fields) -> Client:
        said = hello(**fields)
        client = Client(endpoint=self.endpoint, key=key or self.key, hello=lambda: said, deliver=deliver)
        self.tasks.append(asyncio.create_task(client.run()))
        return client

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for hub in self.hubs:
            await hub.close()
