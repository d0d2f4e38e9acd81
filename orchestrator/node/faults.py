"""Fault tests: each is reported with its true time, and then done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from orchestrator.link.messages import Inject
from orchestrator.node.crew import Crew
from orchestrator.node.monitor import Monitor
from orchestrator.node.processes import Process
from orchestrator.node.worker import Worker
from orchestrator.recovery.events import AnyEvent, CommandFailed, FaultInjected

LAST_WORD_S = 0.01


class InjectionError(ValueError):
    """The fault can't be made here; the message says why."""


class Injector:
    """`allowed`: simulated nodes, and others only when they were started so.

    The raylet is touched on simulated nodes alone: on a real one it serves everybody.
    """

    def __init__(
        self,
        node: str,
        *,
        allowed: bool,
        simulated: bool,
        crew: Crew,
        monitor: Monitor | None,
        raylet: Process | None,
        report: Callable[[AnyEvent, int], None],
    ) -> None:
        self._node = node
        self._allowed = allowed
        self._simulated = simulated
        self._crew = crew
        self._monitor = monitor
        self._raylet = raylet
        self._report = report

    def inject(self, order: Inject) -> None:
        """Answers FaultInjected or CommandFailed."""
        try:
            if not self._allowed:
                raise InjectionError(
                    f"node {self._node} is no simulated node: fault tests on real nodes need `holdfast up --allow-injection`"
                )
            act = self._prepare(order)
        except InjectionError as error:
            self._fail(order, str(error))
            return
        if order.fault not in ("reset", "reboot"):
            self._report(FaultInjected(node=self._node, fault=order.fault, who=order.who), time.monotonic_ns())
        act()

    def _prepare(self, order: Inject) -> Callable[[], object]:
        """What is to be done, after all that can be known to be wrong was found."""
        match order.fault:
            case "xid":
                return self._tell_monitor(
                    {"type": "inject", "gpu": _number(order, "gpu"), "xid": _number(order, "xid")}
                )
            case "reset" | "reboot":
                return self._tell_monitor({"type": order.fault, "gpu": _number(order, "gpu")})
            case "kill_worker":
                return _signal_worker(self._worker(order), signal.SIGKILL)
            case "stop_worker":
                return _signal_worker(self._worker(order), signal.SIGSTOP)
            case "kill_raylet":
                return self._signal_raylet(signal.SIGKILL)
            case "stop_raylet":
                return self._signal_raylet(signal.SIGSTOP)
            case "kill_supervisor":
                # Later: what was just written of it must have left this process.
                return lambda: asyncio.get_running_loop().call_later(LAST_WORD_S, os.kill, os.getpid(), signal.SIGKILL)
        raise InjectionError(f"there is no fault '{order.fault}'")

    def _worker(self, order: Inject) -> Worker:
        """The named one; without a name the first of the node."""
        run = str(order.details.get("run", ""))
        rank = _number(order, "rank", -1)
        found = self._crew.living(run, rank)
        if not found:
            raise InjectionError(
                f"node {self._node} has no trainer{f' of run {run}' if run else ''}"
                f"{f' with rank {rank}' if rank >= 0 else ''}"
            )
        return found[0]

    def _tell_monitor(self, message: dict[str, object]) -> Callable[[], object]:
        monitor = self._monitor
        if not self._simulated or monitor is None or not monitor.pid:
            raise InjectionError(f"node {self._node} has no simulated GPUs that answer now")
        return lambda: monitor.tell(message)

    def _signal_raylet(self, number: int) -> Callable[[], object]:
        raylet = self._raylet
        if not self._simulated or raylet is None:
            raise InjectionError(f"node {self._node} has no raylet of its own to lose")
        return lambda: raylet.send_signal(number)

    def _fail(self, order: Inject, why: str) -> None:
        run = str(order.details.get("run", ""))
        failed = CommandFailed(command="inject", node=self._node, run=run, attempt=0, error=why)
        self._report(failed, time.monotonic_ns())


def _signal_worker(worker: Worker, number: int) -> Callable[[], object]:
    process = worker.process
    assert process is not None
    return lambda: process.send_signal(number)


def _number(order: Inject, name: str, default: int = 0) -> int:
    value = order.details.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise InjectionError(f"'{name}' of the fault '{order.fault}' must be a whole number, not {value!r}") from None
