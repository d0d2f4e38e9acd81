"""A real supervisor process with fake standby, trainers and monitor, and a real hub that writes down what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from orchestrator.link.auth import create_key
from orchestrator.link.endpoint import Endpoint, write_endpoint
from orchestrator.link.hub import Hub
from orchestrator.link.messages import Hello, Inject, LogChunk, Order, Report, WorkerStatus
from orchestrator.node import control
from orchestrator.recovery.commands import AnyCommand, JoinGang, LeaveGang, StartStore, StopWorkers
from orchestrator.recovery.events import AnyEvent

FAKES = Path(__file__).parent / "fakes"
E = TypeVar("E")


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was awaited did not come"
        await asyncio.sleep(0.005)


class Daemon:
    """A hub that acknowledges at once, and the list of what it heard."""

    def __init__(self, key: bytes, *, epoch: int = 1, acks: bool = True) -> None:
        self.hub = Hub(host="127.0.0.1", port=0, key=key, sink=self)
        self.epoch = epoch
        self.acks = acks
        self.hellos: list[Hello] = []
        self.gone: list[str] = []
        self.reports: list[Report] = []
        self.seen: list[WorkerStatus] = []
        self.chunks: list[LogChunk] = []

    def node_connected(self, hello: Hello) -> None:
        self.hellos.append(hello)

    def node_disconnected(self, node: str, why: str) -> None:
        self.gone.append(why)

    def report(self, node: str, report: Report) -> None:
        self.reports.append(report)
        if self.acks:
            self.hub.ack(node, report.cursor)

    def statuses(self, node: str, workers: tuple[WorkerStatus, ...]) -> None:
        self.seen.extend(workers)

    def beat(self, node: str, at_ns: int) -> None: ...

    def log_chunk(self, node: str, chunk: LogChunk) -> None:
        self.chunks.append(chunk)

    def events(self, kind: type[E]) -> list[E]:
        return [report.event for report in self.reports if isinstance(report.event, kind)]

    @property
    def order_of_events(self) -> list[AnyEvent]:
        return [report.event for report in self.reports]

    def order(self, command: AnyCommand, workload: dict | None = None, *, epoch: int = 0) -> None:
        assert self.hub.send("n0", Order(epoch=epoch or self.epoch, command=command, workload=workload))

    def inject(self, fault: str, **details: int | str) -> None:
        assert self.hub.send("n0", Inject(fault=fault, details=details))

    async def event(self, kind: type[E], count: int = 1) -> E:
        """The `count`-th event of the kind, once it is there."""
        await until(lambda: len(self.events(kind)) >= count)
        return self.events(kind)[count - 1]

    def latest(self, rank: int) -> WorkerStatus | None:
        return next((status for status in reversed(self.seen) if status.rank == rank), None)

    async def stepping(self, attempt: int, ranks: tuple[int, ...] = (0,)) -> None:
        """Waits until these ranks have completed steps of the attempt."""

        def all_step() -> bool:
            found = [self.latest(rank) for rank in ranks]
            return all(status and status.attempt == attempt and status.first_step for status in found)

        await until(all_step)


class Node:
    """The supervisor of node n0 and the folders around it. `close` leaves no process behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dir = folder / "node"
        # The folder of a test has too long a path for sockets.
        self._sockets = tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp")
        self.sockets = Path(self._sockets.name)
        self.endpoint = folder / "endpoint.json"
        self.key = create_key(folder / "key")
        self.daemons: list[Daemon] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    async def daemon(self, **options: object) -> Daemon:
        daemon = Daemon(self.key, **options)  # type: ignore[arg-type]
        self.daemons.append(daemon)
        write_endpoint(self.endpoint, Endpoint(*await daemon.hub.start()))
        return daemon

    def start(self, *options: str, standby: str = "", monitor: str = "", gpus: int = 0) -> subprocess.Popen[bytes]:
        mark = f"--mark {self.folder}"
        command = [
            sys.executable, "-m", "orchestrator.node", "--node", "n0", "--dir", str(self.dir),
            "--socket", str(self.sockets), "--key", str(self.folder / "key"), "--endpoint", str(self.endpoint),
            "--gpus", str(gpus), "--boot-id", "boot-1",
            "--standby-command", f"{sys.executable} {FAKES / 'fake_standby.py'} {mark} {standby}",
            "--monitor-command", f"{sys.executable} {FAKES / 'fake_monitor.py'} {mark} {monitor}", *options,
        ]  # fmt: skip
        with open(self.folder / "supervisor.log", "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    async def started(self, *options: str, **fakes: object) -> Daemon:
        """A supervisor that is connected to a new daemon."""
        daemon = await self.daemon()
        self.start(*options, **fakes)  # type: ignore[arg-type]
        await until(lambda: daemon.hellos)
        return daemon

    def ping(self) -> dict | None:
        return control.ping(self.sockets, "n0")

    def leftovers(self) -> list[psutil.Process]:
        """Processes that carry this test's mark in their command line, the supervisor included."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    async def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self.leftovers():
            os.kill(process.pid, signal.SIGKILL)
        for daemon in self.daemons:
            await daemon.hub.close()
        self._sockets.cleanup()


TRAIN = {"argv": ["train"], "run_dir": "/tmp"}


def workload(*argv: str, **fields: object) -> dict:
    return {"argv": ["train", *argv], "run_dir": "/tmp", **fields}


def join(attempt: int = 1, ranks: tuple[int, ...] = (0,), run: str = "r", **fields: object) -> JoinGang:
    given = {"world_size": 4, "replicas": 2, "shards": 2, "store_host": "127.0.0.1", "store_port": 4711}
    return JoinGang(node="n0", run=run, attempt=attempt, ranks=ranks, **{**given, "restore": "checkpoint", **fields})  # type: ignore[arg-type]


def leave(attempt: int = 1, run: str = "r") -> LeaveGang:
    return LeaveGang(node="n0", run=run, attempt=attempt, why="a peer went away")


def stop(attempt: int = 1, grace_s: float = 5.0, run: str = "r") -> StopWorkers:
    return StopWorkers(node="n0", run=run, attempt=attempt, grace_s=grace_s, why="test")


def store(attempt: int = 1, run: str = "r") -> StartStore:
    return StartStore(node="n0", run=run, attempt=attempt)
