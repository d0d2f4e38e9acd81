"""What must hold, checked from outside: against the commands, the ledger and the simulated truth, not the core's word.

The core's own invariants are checked beside these. A violation is a sentence.
"""

from __future__ import annotations

from orchestrator.recovery import invariants
from orchestrator.recovery.commands import Command, JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Decision, NodeHealth, RunPhase, RunState, State
from orchestrator.simulator.cluster import SimCluster

TERMINAL = (RunPhase.COMPLETED, RunPhase.FAILED, RunPhase.CANCELLED)


class Checks:
    """Call `step` after every decision and `end` once; violations gather in `found`."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._newest: dict[str, int] = {}  # run -> highest attempt that was ever commanded

    def step(self, before: State, event: Event, decision: Decision) -> None:
        state = decision.state
        self.found += invariants.check_step(before, event, decision)
        for command in decision.commands:
            self._command(before, state, command)
        for name, run in state.runs.items():
            was = before.runs.get(name)
            if run is not was:
                self._ledger(run)
                self._members(state, run)
                if was is not None and was.phase in TERMINAL and run.phase != was.phase:
                    self.found.append(f"{name} went from {was.phase} to {run.phase}")

    def end(self, state: State, cluster: SimCluster) -> None:
        """All runs have ended and the world has come to rest."""
        for name, run in state.runs.items():
            truth = cluster.runs[name]
            self.found += truth.overlaps
            if run.step > truth.highest:
                self.found.append(f"{name} is said to have done step {run.step}, and has done {truth.highest}")
            if run.phase == RunPhase.COMPLETED and not truth.finished:
                self.found.append(f"{name} is called completed but its ranks have not all finished every step")
            if run.phase == RunPhase.FAILED and not _budget_spent(state, run):
                self.found.append(f"{name} failed with budget left: {run.reason}")
        for node in cluster.nodes.values():
            if node.reachable():
                self.found += [f"{t.run} rank {t.rank} still lives on {node.name}" for t in node.trainers.values()]
                self.found += [f"{run}'s store still lives on {node.name}" for run in node.stores]

    def waiting(self, state: State, cluster: SimCluster) -> None:
        """Nobody waits for capacity that is there."""
        free = [n for n in state.nodes.values() if _usable(n, cluster)]
        for name in state.queue[:1]:
            if state.runs[name].plan.nodes <= len(free):
                self.found.append(
                    f"{name} is queued for {state.runs[name].plan.nodes} nodes while {len(free)} are free"
                )

    def _command(self, before: State, state: State, command: Command) -> None:
        if isinstance(command, ProbeNode) and not command.run:
            return
        assert isinstance(command, ProbeNode | StartStore | JoinGang | LeaveGang | StopWorkers)
        run = state.runs.get(command.run)
        if run is None:
            self.found.append(f"{type(command).__name__} names the unknown run {command.run!r}")
            return
        newest = self._newest.get(command.run, 0)
        if command.attempt > run.attempt or (command.attempt < newest and not isinstance(command, StopWorkers)):
            newest = max(newest, run.attempt)
            self.found.append(
                f"{type(command).__name__} to {command.node} is for attempt {command.attempt}, not {newest}"
            )
        self._newest[command.run] = max(newest, command.attempt)
        if isinstance(command, StartStore | JoinGang):
            self._placed(before, state, run, command)

    def _placed(self, before: State, state: State, run: RunState, command: StartStore | JoinGang) -> None:
        """Only nodes of a living run's placement take part, with the ranks that are theirs.

        A new one must be healthy; one that was in the gang before may be suspect, when no other can take its place.
        """
        what = f"{type(command).__name__} of {run.run} attempt {command.attempt} to {command.node}"
        node = state.nodes.get(command.node)
        if run.phase in TERMINAL:
            self.found.append(f"{what}: the run is {run.phase}")
        was = before.runs.get(run.run)
        stayed = was is not None and command.node in was.placement
        allowed = (NodeHealth.HEALTHY, NodeHealth.SUSPECT) if stayed else (NodeHealth.HEALTHY,)
        if node is None or node.health not in allowed:
            self.found.append(f"{what}: the node is {node.health if node else 'unknown'}")
        if command.node not in run.placement:
            self.found.append(f"{what}: the node is not in its placement {run.placement}")
        elif isinstance(command, JoinGang):
            per_node = run.plan.ranks_per_node
            first = run.placement.index(command.node) * per_node
            if command.ranks != tuple(range(first, first + per_node)):
                self.found.append(f"{what}: ranks {command.ranks} belong to another node")

    def _ledger(self, run: RunState) -> None:
        ledger = run.ledger
        total_ns = sum(ledger.accounts.values())
        if total_ns != ledger.since_ns - ledger.opened_ns:
            lost_ns = ledger.since_ns - ledger.opened_ns - total_ns
            self.found.append(f"{run.run}: the ledger has lost {lost_ns} ns")
        if ledger.opened_ns != run.submitted_ns or (run.phase in TERMINAL and ledger.since_ns != run.finished_ns):
            self.found.append(f"{run.run}: the ledger does not span submission to end")

    def _members(self, state: State, run: RunState) -> None:
        if run.phase in TERMINAL:
            return
        placed = [name for name in run.placement if name]
        if len(set(placed)) != len(placed):
            self.found.append(f"{run.run}: a node is placed twice: {run.placement}")
        for name in placed:
            node = state.nodes[name]
            if node.run != run.run:
                self.found.append(f"{run.run}: {name} of its placement belongs to {node.run or 'nobody'}")
            if run.phase == RunPhase.RUNNING and node.health == NodeHealth.QUARANTINED:
                self.found.append(f"{run.run} runs on the quarantined node {name}")


def _usable(node: object, cluster: SimCluster) -> bool:
    truth = cluster.nodes[node.node]  # type: ignore[attr-defined]
    return node.health == NodeHealth.HEALTHY and node.present and not node.run and truth.reachable()  # type: ignore[attr-defined]


def _budget_spent(state: State, run: RunState) -> bool:
    return (
        run.recoveries >= run.plan.max_recoveries
        or run.barren_recoveries >= state.policy.max_recoveries_without_progress
    )
