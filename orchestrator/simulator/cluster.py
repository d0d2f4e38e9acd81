"""The simulated world behind the controller's Cluster protocol: a heap, a virtual clock, one seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.recovery.commands import Command
from orchestrator.recovery.events import Event, NodeReady
from orchestrator.simulator.link import OPERATOR, Line, Link
from orchestrator.simulator.observer import Observer
from orchestrator.simulator.shape import Shape
from orchestrator.simulator.supervisor import Supervisor
from orchestrator.simulator.timeline import S, Timeline
from orchestrator.simulator.trainer import Trainer
from orchestrator.simulator.truth import RunTruth


class DaemonCrashed(BaseException):
    """The simulated daemon dies here. No error of the code under test: nothing may catch it on the way."""


@dataclass
class CrashPlan:
    """Where the daemon dies: before or after the journal write, or in `execute` when `orders` of the commands are sent.

    `writes` counts down the journal writes until then.
    """

    point: str  # before_write, after_write, in_execute
    writes: int
    orders: int = 0


class Operator:
    """The far end of the operator's line: always there, has no state."""

    name = OPERATOR

    def reachable(self) -> bool:
        return True

    def ready(self) -> NodeReady | None:
        return None

    def obey(self, epoch: int, command: Command) -> None:
        raise AssertionError(f"a command was sent to the operator: {command}")


class SimCluster:
    """Implements Cluster. `until_ns` bounds its time; `quiet` is set when nothing happens any more before that."""

    def __init__(self, shape: Shape, rng: random.Random, until_ns: int) -> None:
        self.shape = shape
        self.until_ns = until_ns
        self.rng = rng
        self.timeline = Timeline()
        self.link = Link(self.timeline, rng, shape)
        self.runs = {job.run: RunTruth(job, self.timeline, rng, shape.vote_share) for job in shape.jobs}
        self.nodes = {name: Supervisor(name, self.timeline, rng, self.link, self.runs) for name in shape.nodes}
        self.observer = Observer(self.timeline, rng, self.link, self.runs)
        self.link.on_connect = self.observer.look_again
        for truth in self.runs.values():
            truth.watcher = self.observer
            truth.on_finish = partial(self._trigger, "finish")
        for node in self.nodes.values():
            self.link.add(node)
        self.link.add(Operator())
        self.epoch = 0
        self.crash: CrashPlan | None = None
        self.aim = ""  # node that the present fault shall strike; empty: any
        self.quiet = False
        self.sent: list[tuple[int, Command]] = []  # (epoch, command) in the order of sending
        self.triggers: dict[str, list[tuple[int, Callable[[], None]]]] = {}  # command kind -> (delay, fault)
        self._taken: tuple[Line, int] | None = None

    # --- Cluster

    def now_ns(self) -> int:
        return self.timeline.now_ns

    def next_event(self, until_ns: int | None) -> Event | None:
        self._acknowledge()
        while not self.link.inbox:
            next_ns = self.timeline.next_ns()
            if until_ns is not None and until_ns <= self.until_ns and (next_ns is None or next_ns > until_ns):
                self.timeline.advance(until_ns)
                return None
            if next_ns is None or next_ns > self.until_ns:
                self.quiet = True
                return None
            self.timeline.turn()
        event, line, cursor = self.link.inbox.popleft()
        self._taken = (line, cursor) if line is not None else None
        return event

    def execute(self, commands: tuple[Command, ...]) -> None:
        dies = self.crash is not None and self.crash.point == "in_execute" and self.crash.writes <= 0
        for sent, command in enumerate(commands):
            if dies and self.crash is not None and sent >= self.crash.orders:
                raise DaemonCrashed
            self.sent.append((self.epoch, command))
            self.link.order(self.epoch, command)
            self._trigger(str(command.__struct_config__.tag))
        if dies:
            raise DaemonCrashed

    def _acknowledge(self) -> None:
        """To be asked for the next event means that the last one is durable."""
        if self._taken is not None:
            self.link.acknowledge(*self._taken)
            self._taken = None

    # --- the daemon's life

    def daemon_started(self) -> None:
        """Supervisors connect; what is executed from now on bears `epoch`."""
        self.link.daemon_started()
        self.observer.daemon_started()

    def daemon_died(self) -> None:
        self._taken = None
        self.crash = None
        self.link.daemon_died()
        self.observer.forget()

    # --- for faults and checks

    def when(self, trigger: str, delay_ns: int, call: Callable[[], None]) -> None:
        """Call `delay_ns` after the next command of this kind is sent, or (finish) after the next gang is through."""
        self.triggers.setdefault(trigger, []).append((delay_ns, call))

    def _trigger(self, kind: str) -> None:
        for delay_ns, call in self.triggers.pop(kind, ()):
            self.timeline.after(delay_ns, call)

    def live_trainers(self) -> list[Trainer]:
        return [trainer for node in self.nodes.values() for trainer in node.trainers.values()]

    def settle(self, span_ns: int = 30 * S) -> None:
        """Let the world go on for a while without the daemon taking anything in."""
        self.timeline.advance(self.timeline.now_ns + span_ns)
