"""The rendezvous stores of this node: at most one a run, that of its newest attempt."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import structlog

from orchestrator.node import protocol
from orchestrator.node.launcher import Launcher, LaunchError
from orchestrator.node.lines import Line
from orchestrator.node.processes import Process, Reaper
from orchestrator.node.tasks import Tasks
from orchestrator.node.workload import Workload
from orchestrator.recovery.commands import StartStore
from orchestrator.recovery.events import AnyEvent, CommandFailed, StoreLost, StoreReady

log = structlog.get_logger(__name__)


class _Store:
    """`port` is 0 until it listens. `dropped`: nobody wants it any more, so its end is no news."""

    def __init__(self, run: str, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.host = ""
        self.port = 0
        self.dropped = False
        self.process: Process | None = None


class Stores:
    """`report` takes an event and the time at which it was seen (monotonic nanoseconds)."""

    def __init__(
        self, node: str, *, launcher: Launcher, reaper: Reaper, report: Callable[[AnyEvent, int], None], tasks: Tasks
    ) -> None:
        self._node = node
        self._launcher = launcher
        self._reaper = reaper
        self._report = report
        self._tasks = tasks
        self._stores: dict[str, _Store] = {}

    def living(self) -> tuple[tuple[str, int], ...]:
        """(run, attempt) of each store that is wanted."""
        return tuple((s.run, s.attempt) for s in self._stores.values() if not s.dropped)

    def start(self, command: StartStore, workload: Workload) -> None:
        """Answers again when the attempt's store listens already; one of an older attempt is ended."""
        store = self._stores.get(command.run)
        if store and store.attempt == command.attempt:
            if store.port:
                self._ready(store)
            return
        self.drop(command.run, before=command.attempt)
        store = self._stores[command.run] = _Store(command.run, command.attempt)
        self._tasks.start(self._launch(store, command, workload), name=f"store {command.run}")

    def drop(self, run: str, *, before: int) -> None:
        """Ends the run's store when it is of an attempt before this one."""
        store = self._stores.get(run)
        if store and store.attempt < before:
            self._drop(store)

    def drop_all(self) -> None:
        for store in list(self._stores.values()):
            self._drop(store)

    def _drop(self, store: _Store) -> None:
        store.dropped = True
        del self._stores[store.run]
        if store.process:
            store.process.send_signal_to_group(signal.SIGKILL)

    async def _launch(self, store: _Store, command: StartStore, workload: Workload) -> None:
        try:
            pid = await self._launcher.start_store(command, workload)
        except LaunchError as error:
            if not store.dropped:
                del self._stores[store.run]
                failed = CommandFailed(
                    command="start_store",
                    node=self._node,
                    run=command.run,
                    attempt=command.attempt,
                    error=str(error),
                )
                self._report(failed, time.monotonic_ns())
            return
        self._attach(store, pid)

    def _attach(self, store: _Store, pid: int) -> None:
        if store.process is None:
            store.process = self._reaper.watch(pid, lambda: self._ended(store))
        if store.dropped:
            store.process.send_signal_to_group(signal.SIGKILL)

    def take(self, line: Line, said: protocol.Store) -> bool:
        """A store says that it listens. False when nobody wants it: it should end."""
        store = self._stores.get(said.run)
        if store is None:
            # Of this node's supervisor before this one: its gang may still use it.
            log.info("store adopted", run=said.run, attempt=said.attempt, pid=said.pid)
            store = self._stores[said.run] = _Store(said.run, said.attempt)
        elif store.attempt != said.attempt:
            return False
        known = store.port != 0
        store.host, store.port = said.host, said.port
        self._attach(store, line.peer()[0])
        if not known:
            self._ready(store)
        return True

    def _ready(self, store: _Store) -> None:
        ready = StoreReady(
            run=store.run,
            attempt=store.attempt,
            node=self._node,
            host=store.host,
            port=store.port,
        )
        self._report(ready, time.monotonic_ns())

    def _ended(self, store: _Store) -> None:
        assert store.process is not None
        how = store.process.reap()
        if store.dropped:
            return
        del self._stores[store.run]
        lost = StoreLost(
            run=store.run, attempt=store.attempt, node=self._node, detail=f"the store's process ended: {how}"
        )
        self._report(lost, store.process.ended_ns)
