"""A node's supervisor: everything on the node that belongs to Holdfast hangs on this process.

It outlives the daemon, the bridge and the agent; trainers go on without any of them. It ends when it is told to, or when
its raylet is gone: then it ends the trainers first, since a node that Ray has lost must not go on writing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from dataclasses import dataclass
from typing import Any

import structlog

from orchestrator.link.client import Client
from orchestrator.link.messages import (
    LINK_VERSION,
    Hello,
    Inject,
    Order,
    ReadLog,
    Shutdown,
    ToSupervisor,
    WorkerStatuses,
)
from orchestrator.node import paths
from orchestrator.node.control import ControlServer
from orchestrator.node.crew import Crew
from orchestrator.node.executor import Executor
from orchestrator.node.faults import Injector
from orchestrator.node.fence import Fence
from orchestrator.node.launcher import Launcher
from orchestrator.node.logs import read_chunk
from orchestrator.node.monitor import Monitor
from orchestrator.node.options import Options
from orchestrator.node.processes import Process, Reaper, leashed
from orchestrator.node.server import WorkerServer
from orchestrator.node.standby import Standby
from orchestrator.node.stores import Stores
from orchestrator.node.tasks import Tasks
from orchestrator.recovery.events import AnyEvent, FaultInjected, Finding, NodeFindings, NodeLost

STOP_GRACE_S = 1.0
LAST_WORDS_S = 1.0
SIMULATED_NICE = 5  # many simulated nodes share one machine with the trainers that they watch

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _End:
    why: str
    grace_s: float
    exit_code: int


class Supervisor:
    """Made and run inside one event loop."""

    def __init__(self, options: Options, key: bytes) -> None:
        self._options = options
        self._life = secrets.token_hex(8)
        self._fence = Fence(options.node_dir / "epoch")
        self._tasks = Tasks()
        self._reaper = Reaper()
        self._end: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self._client = Client(endpoint=options.endpoint, key=key, hello=self._hello, deliver=self._deliver)
        self._standby = Standby(
            options.standby_command, env=os.environ, log_path=options.node_dir / "standby.log", reaper=self._reaper
        )
        self._monitor = self._make_monitor() if options.gpus else None
        worker_socket = paths.worker_socket(options.sockets, options.node)
        launcher = Launcher(
            self._standby, node_dir=options.node_dir, worker_socket=worker_socket, host=options.bind_host
        )
        self._crew = Crew(
            options.node,
            launcher=launcher,
            reaper=self._reaper,
            report=self._report,
            send_statuses=lambda workers: self._client.send(WorkerStatuses(workers=workers)),
            tasks=self._tasks,
        )
        self._stores = Stores(
            options.node, launcher=launcher, reaper=self._reaper, report=self._report, tasks=self._tasks
        )
        self._server = WorkerServer(worker_socket, self._crew, self._stores)
        self._control = ControlServer(
            paths.control_socket(options.sockets, options.node), describe=self._describe, shut_down=self.shut_down
        )
        self._executor = Executor(
            options.node,
            fence=self._fence,
            crew=self._crew,
            stores=self._stores,
            monitor=self._monitor,
            report=self._report,
            tasks=self._tasks,
        )

    async def run(self) -> int:
        """Serves until its end; returns the exit code of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.shut_down, f"signal {number.name}")
        raylet = self._watch_raylet()
        self._injector = self._make_injector(raylet)
        await self._server.start()
        await self._control.start()
        services = [self._client.run(), self._standby.run(), self._reaper.run()]
        running = [asyncio.create_task(service) for service in services]
        if self._monitor:
            running.append(asyncio.create_task(self._monitor.run()))
        log.info("supervisor runs", node=self._options.node, pid=os.getpid(), boot_id=self._options.boot_id)
        try:
            ends: list[asyncio.Future[Any]] = [self._end, *running]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return await self._finish(running)
        finally:
            self._control.close()

    async def _finish(self, running: list[asyncio.Task[None]]) -> int:
        failed = next((task.exception() for task in running if task.done()), None)
        end = self._end.result() if self._end.done() else _End("a part of it failed", 0.0, 1)
        log.info("supervisor ends", why=end.why, exc_info=failed)
        link, helpers = running[0], running[1:]
        self._stores.drop_all()
        await self._crew.close(end.grace_s)
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await self._client.settle(LAST_WORDS_S if self._client.connected else 0.0)
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        await self._server.close()
        await self._tasks.close()
        # A fork that was under way, and what trainers left behind in sessions of their own.
        await self._reaper.end_children(STOP_GRACE_S)
        return end.exit_code

    def shut_down(self, why: str) -> None:
        """Ends trainers politely, then everything."""
        if not self._end.done():
            self._end.set_result(_End(why, STOP_GRACE_S, 0))

    # --- what it is made of

    def _make_monitor(self) -> Monitor:
        options = self._options
        return Monitor(
            leashed(options.monitor_command),
            env=os.environ,
            log_path=options.node_dir / "monitor.log",
            reaper=self._reaper,
            nice=SIMULATED_NICE if options.simulated else 0,
            on_findings=self._report_findings,
        )

    def _make_injector(self, raylet: Process | None) -> Injector:
        options = self._options
        return Injector(
            options.node,
            allowed=options.simulated or options.allow_injection,
            simulated=options.simulated,
            crew=self._crew,
            monitor=self._monitor,
            raylet=raylet,
            report=self._report,
        )

    def _watch_raylet(self) -> Process | None:
        pid = self._options.raylet_pid
        return self._reaper.watch(pid, self._raylet_ended) if pid else None

    def _raylet_ended(self) -> None:
        for worker in self._crew.living():
            self._crew.kill(worker)
        self._stores.drop_all()
        self._report(NodeLost(node=self._options.node, evidence="its raylet ended"), time.monotonic_ns())
        if not self._end.done():
            self._end.set_result(_End("its raylet ended", 0.0, 0))

    # --- what it says

    def _report(self, event: AnyEvent, observed_ns: int) -> None:
        log.info("report", report=type(event).__name__, **_brief(event))
        fault_ns = observed_ns if isinstance(event, FaultInjected) else 0
        self._client.report(event, observed_ns=observed_ns, fault_ns=fault_ns)

    def _report_findings(self, found: tuple[Finding, ...]) -> None:
        self._report(NodeFindings(node=self._options.node, findings=found), time.monotonic_ns())

    def _hello(self) -> Hello:
        return Hello(
            version=LINK_VERSION,
            node=self._options.node,
            boot_id=self._options.boot_id,
            gpus=self._options.gpus,
            pid=os.getpid(),
            host=self._options.bind_host,
            epoch=self._fence.epoch,
            workers=self._crew.statuses(),
            stores=self._stores.living(),
            simulated=self._options.simulated,
            life=self._life,
        )

    def _describe(self) -> dict[str, object]:
        return {
            "node": self._options.node,
            "pid": os.getpid(),
            "boot_id": self._options.boot_id,
            "life": self._life,
            "connected": self._client.connected,
            "workers": len(self._crew.statuses()),
            "standby_ready": self._standby.ready,
        }

    # --- what it is told

    def _deliver(self, message: ToSupervisor) -> None:
        match message:
            case Order():
                if why := self._executor.obey(message):
                    log.warning("daemon not obeyed", why=why)
                    # A daemon whose time is over must not acknowledge reports that the next one needs.
                    self._client.disconnect(why)
            case Inject():
                self._injector.inject(message)
            case ReadLog():
                self._client.send(read_chunk(self._options.node_dir, message))
            case Shutdown(why=why):
                self.shut_down(why)


def _brief(event: AnyEvent) -> dict[str, object]:
    names = ("run", "attempt", "rank", "fault", "detail", "error", "evidence", "ok")
    return {name: getattr(event, name) for name in names if hasattr(event, name)}
