"""Carries out the daemon's orders. Each may come again: what is done already is only answered again."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from orchestrator.link.messages import Order
from orchestrator.node import findings, paths
from orchestrator.node.crew import Crew
from orchestrator.node.fence import Fence
from orchestrator.node.monitor import Monitor
from orchestrator.node.stores import Stores
from orchestrator.node.tasks import Tasks
from orchestrator.node.workload import WorkloadError, parse_workload
from orchestrator.recovery.commands import AnyCommand, JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.events import AnyEvent, CommandFailed, Finding, NodeProbed

log = structlog.get_logger(__name__)


class Executor:
    """`report` takes an event and the time at which it was seen. `monitor` is None on a node without GPUs."""

    def __init__(
        self,
        node: str,
        *,
        fence: Fence,
        crew: Crew,
        stores: Stores,
        monitor: Monitor | None,
        report: Callable[[AnyEvent, int], None],
        tasks: Tasks,
    ) -> None:
        self._node = node
        self._fence = fence
        self._crew = crew
        self._stores = stores
        self._monitor = monitor
        self._report = report
        self._tasks = tasks
        self._probing: set[ProbeNode] = set()

    def obey(self, order: Order) -> str:
        """Carries the order out, or says why not. An answer means that the sender is no daemon to follow any more."""
        if not self._fence.admit(order.epoch):
            return f"it commands in epoch {order.epoch}, but epoch {self._fence.epoch} has begun"
        try:
            self._carry_out(order)
        except (WorkloadError, paths.PathError, OSError) as error:
            self._fail(order.command, str(error))
        except Exception as error:
            log.exception("order failed", order=type(order.command).__name__)
            self._fail(order.command, f"the supervisor failed: {error!r}")
        return ""

    def _carry_out(self, order: Order) -> None:
        command = order.command
        if command.node != self._node:
            raise WorkloadError(f"the order is for node {command.node}, this is {self._node}")
        if isinstance(command, ProbeNode):
            self._probe(command)
            return
        paths.check_run_name(command.run)
        if not self._fence.admit_attempt(command.run, command.attempt):
            log.info("order of an old attempt", order=type(command).__name__, run=command.run, attempt=command.attempt)
            return
        match command:
            case StartStore():
                self._stores.start(command, parse_workload(order.workload))
            case JoinGang():
                self._stores.drop(command.run, before=command.attempt)
                self._crew.bring(command, parse_workload(order.workload))
            case LeaveGang():
                self._crew.let_go(command)
            case StopWorkers():
                self._stores.drop(command.run, before=command.attempt + 1)
                self._crew.stop_run(command.run, command.attempt, command.grace_s)

    def _probe(self, command: ProbeNode) -> None:
        if command not in self._probing:
            self._probing.add(command)
            self._tasks.start(self._answer_probe(command), name=f"probe {command.purpose}")

    async def _answer_probe(self, command: ProbeNode) -> None:
        try:
            ok, found = await self._ask_monitor()
        finally:
            self._probing.discard(command)
        event = NodeProbed(
            node=self._node,
            purpose=command.purpose,
            ok=ok,
            run=command.run,
            attempt=command.attempt,
            findings=found,
        )
        self._report(event, time.monotonic_ns())

    async def _ask_monitor(self) -> tuple[bool, tuple[Finding, ...]]:
        if self._monitor is None:
            return True, (findings.nothing_to_probe(),)
        return await self._monitor.probe(idle=not self._crew.living())

    def _fail(self, command: AnyCommand, why: str) -> None:
        failed = CommandFailed(
            command=str(command.__struct_config__.tag),
            node=self._node,
            run=command.run,
            attempt=command.attempt,
            error=why,
        )
        self._report(failed, time.monotonic_ns())
