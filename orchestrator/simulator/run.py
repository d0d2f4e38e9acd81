"""One seed: the real controller and the real `decide` in a simulated world, until every run has ended.

The daemon may die between any two journal writes; a new one replays the journal and must find the state that the old
one had written. Faults stop at the horizon; then everything is mended and brought back, and every run must end.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import msgspec

from orchestrator.controller import Controller, Decide
from orchestrator.journal.entry import encode_commands, encode_event
from orchestrator.journal.memory import MemoryJournal
from orchestrator.journal.replay import replay
from orchestrator.recovery import decide as core
from orchestrator.recovery.events import Event, RunCancelled, RunSubmitted
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, NodeHealth, State
from orchestrator.simulator.checks import TERMINAL, Checks
from orchestrator.simulator.cluster import CrashPlan, DaemonCrashed, SimCluster
from orchestrator.simulator.faults import Fault, draw_faults, plan_faults, repair
from orchestrator.simulator.link import OPERATOR
from orchestrator.simulator.shape import Shape, draw_shape
from orchestrator.simulator.timeline import MS, START_NS, S

REPAIR_AFTER_NS = 60 * S  # after the horizon, and each time again
PATIENCE_NS = 4 * 3600 * S  # after the horizon every run must end within this
MAX_DECISIONS = 20_000
SETTLE_NS = 120 * S

Tracer = Callable[[Event, Decision], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is the SHA-256 of every event, command and reason in order: the same seed gives the same one."""

    seed: int
    violations: tuple[str, ...]
    phases: dict[str, str]
    decisions: int
    faults: int
    recoveries: int
    restarts: int  # of the daemon
    stale_commands: int  # dropped by supervisors for their attempt or epoch
    redelivered: int
    virtual_s: float
    digest: str

    @property
    def ok(self) -> bool:
        return not self.violations


class ViolationError(Exception):
    """A violation was found; the simulation ends here."""


class CrashingJournal(MemoryJournal):
    """Dies before or after a write when the cluster's crash plan says so. `state` is that of the last durable entry."""

    def __init__(self, cluster: SimCluster, state: State) -> None:
        super().__init__()
        self.cluster = cluster
        self.state = state

    def append(self, event: Event, decision: Decision) -> int:
        plan = self.cluster.crash
        if plan is not None:
            plan.writes -= 1
            if plan.writes <= 0 and plan.point == "before_write":
                raise DaemonCrashed
        seq = super().append(event, decision)
        self.state = decision.state
        if plan is not None and plan.writes <= 0 and (plan.point == "after_write" or not decision.commands):
            raise DaemonCrashed
        return seq


class Simulation:
    def __init__(
        self, shape: Shape, faults: tuple[Fault, ...], rng: random.Random, decide: Decide, tracer: Tracer | None
    ) -> None:
        self.shape = shape
        self.rng = rng
        self.decide = decide
        self.tracer = tracer
        self.cluster = SimCluster(shape, rng, START_NS + shape.horizon_ns + PATIENCE_NS)
        self.checks = Checks()
        self.journal = CrashingJournal(self.cluster, core.initial_state(Policy()))
        self.restarts = 0
        self.epoch = 0
        self.before = self.journal.state
        self.controller = self._controller(self.journal.state)
        plan_faults(self.cluster, faults)
        for job in shape.jobs:
            self.cluster.timeline.after(job.submit_ns, self._submit, RunSubmitted(run=job.run, plan=job.plan))
        self.cluster.timeline.after(shape.horizon_ns + REPAIR_AFTER_NS, self._first_round)

    def run(self) -> None:
        """Raises ViolationError; what was found is in `checks`."""
        self._surviving(self._start)
        while not self._over():
            self._step()
            if len(self.journal.written) > MAX_DECISIONS:
                self._break(f"no end after {MAX_DECISIONS} decisions")
            if self.cluster.quiet:
                self._break("a run never ends: " + self._unended())
        self._settle()
        self.checks.end(self.controller.state, self.cluster)
        self._replayed()

    # --- the daemon

    def _controller(self, state: State) -> Controller:
        listeners = (self._check, self.tracer) if self.tracer else (self._check,)
        return Controller(
            self.cluster, self.journal, state, self.shape.policy, decide=self.decide, listeners=listeners, strict=True
        )

    def _step(self) -> None:
        self._surviving(self.controller.step)

    def _surviving(self, call: Callable[[], None]) -> None:
        """Whatever of the daemon's life dies is followed by a new life, which may die as well."""
        while True:
            try:
                call()
                break
            except DaemonCrashed:
                call = self._restart
        if self.checks.found:
            raise ViolationError

    def _start(self) -> None:
        """Nodes connect before or after the new daemon has spoken: both happen."""
        self.epoch += 1
        self.cluster.epoch = self.epoch
        if self.shape.connects_first:
            self.cluster.daemon_started()
            self.cluster.settle(700 * MS)
            self.controller.start(self.epoch)
        else:
            self.controller.start(self.epoch)
            self.cluster.daemon_started()

    def _restart(self) -> None:
        if self.before is not self.journal.state:
            self._check_last()
        self.restarts += 1
        self.cluster.daemon_died()
        self.cluster.settle(self.rng.randrange(100 * MS, self.shape.restart_over_ns))
        self.controller = self._controller(self._replayed())
        self._start()

    def _replayed(self) -> State:
        again = replay(self.journal.entries(), self.decide)
        if again.divergences:
            first = again.divergences[0]
            self._break(f"replay diverges at entry {first.seq}: {first.error or first.decided_reason}")
        if again.state != self.journal.state:
            self._break("replay gives another state than the one that was decided")
        return again.state

    # --- the operator

    def _submit(self, event: Event) -> None:
        self.cluster.link.report(OPERATOR, event)

    def _first_round(self) -> None:
        self.checks.waiting(self.controller.state, self.cluster)
        self._mend()

    def _mend(self) -> None:
        """Power on, join up, repair and readmit whatever is out, and look again later; cancel what is too large."""
        state = self.controller.state
        for node in self.cluster.nodes.values():
            if not node.powered:
                node.boot()
            elif node.partitioned:
                node.partitioned = False
                self.cluster.link.connect_soon(node.name)
            known = state.nodes.get(node.name)
            if known is not None and (known.health != NodeHealth.HEALTHY or node.sick or node.lemon):
                repair(self.cluster, node)
        for job in self.shape.jobs:
            if job.plan.nodes > len(self.cluster.nodes):
                self._submit(RunCancelled(run=job.run, who="operator", why="larger than the cluster"))
        self.cluster.timeline.after(REPAIR_AFTER_NS, self._mend)

    # --- checks

    def _check(self, event: Event, decision: Decision) -> None:
        self.checks.step(self.before, event, decision)
        self.before = decision.state

    def _check_last(self) -> None:
        """The daemon died after a write: its listeners never heard of that decision."""
        entry = self.journal.written[-1]
        self._check(entry.event, Decision(state=self.journal.state, commands=entry.commands, reason=entry.reason))

    def _over(self) -> bool:
        runs = self.controller.state.runs
        return len(runs) == len(self.shape.jobs) and all(run.phase in TERMINAL for run in runs.values())

    def _unended(self) -> str:
        runs = self.controller.state.runs
        return "; ".join(
            f"{job.run} is {runs[job.run].phase} ({runs[job.run].reason})"
            if job.run in runs
            else f"{job.run} is unknown"
            for job in self.shape.jobs
            if job.run not in runs or runs[job.run].phase not in TERMINAL
        )

    def _settle(self) -> None:
        """After the last end: late answers, stops and reconnections still come in."""
        self.cluster.until_ns = self.cluster.now_ns() + SETTLE_NS
        while not self.cluster.quiet:
            self._step()

    def _break(self, violation: str) -> None:
        self.checks.found.append(violation)
        raise ViolationError


def simulate(
    seed: int,
    *,
    decide: Decide | None = None,
    tracer: Tracer | None = None,
    shape: Shape | None = None,
    faults: tuple[Fault, ...] | None = None,
    crash: CrashPlan | None = None,
) -> Outcome:
    """Run one seed to its end. Pure: the outcome depends on the arguments alone. `tracer` sees every decision.

    `shape` and `faults` replace what the seed would draw; `crash` is a death of the daemon, counted in writes.
    """
    rng = random.Random(seed)
    drawn = draw_shape(seed, rng)
    shape = shape or drawn
    faults = draw_faults(shape, rng) if faults is None else faults
    simulation = Simulation(shape, faults, rng, decide or core.decide, tracer)
    simulation.cluster.crash = crash
    try:
        simulation.run()
    except ViolationError:
        pass
    except Exception as error:
        simulation.checks.found.append(f"{type(error).__name__}: {error}")
    return _outcome(simulation, seed, len(faults))


def _outcome(simulation: Simulation, seed: int, faults: int) -> Outcome:
    cluster = simulation.cluster
    state = simulation.journal.state
    digest = hashlib.sha256()
    for entry in simulation.journal.written:
        digest.update(f"{encode_event(entry.event)}{encode_commands(entry.commands)}{entry.reason}\n".encode())
    return Outcome(
        seed=seed,
        violations=tuple(simulation.checks.found),
        phases={name: str(state.runs[name].phase) for name in sorted(state.runs)},
        decisions=len(simulation.journal.written),
        faults=faults,
        recoveries=sum(run.recoveries for run in state.runs.values()),
        restarts=simulation.restarts,
        stale_commands=sum(node.stale_attempts + node.stale_epochs for node in cluster.nodes.values()),
        redelivered=cluster.link.duplicates + cluster.link.resent,
        virtual_s=(cluster.now_ns() - START_NS) / S,
        digest=digest.hexdigest(),
    )
