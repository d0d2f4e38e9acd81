"""What must be true of every state and of every step, checked by tests, the simulator and `replay`. Visits everything.

Each check returns sentences about what is violated; none when all is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from msgspec.structs import replace

from orchestrator.recovery.commands import JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.decide import next_deadline
from orchestrator.recovery.draft import OUT, TERMINAL, placeable
from orchestrator.recovery.events import Event, NodeQuarantined, NodeReadmitted
from orchestrator.recovery.incident import SUCCESSORS
from orchestrator.recovery.placement import missing
from orchestrator.recovery.run_machine import queue_key
from orchestrator.recovery.state import Cause, Decision, Hold, Incident, RecoveryPhase, RunPhase, RunState, State

IN_STAGES = frozenset({RunPhase.STARTING, RunPhase.RECOVERING})
PLACED = frozenset({RunPhase.CHECKING, RunPhase.RUNNING, *IN_STAGES})
# Causes of the ledger that incidents tell as well, second for second.
RECOVERY_CAUSES = (
    Cause.DETECT,
    Cause.DECIDE,
    Cause.ISOLATE,
    Cause.PLACE,
    Cause.FORM,
    Cause.RESTORE,
    Cause.FIRST_STEP,
)


def check(state: State) -> list[str]:
    """Violations of one state."""
    found = [*_derived(state), *_queue(state)]
    for run in state.runs.values():
        for violation in (*_ledger(state, run), *_gang(state, run), *_phase(state, run), *_incidents(run)):
            found.append(f"run {run.run}: {violation}")
    return found


def check_step(before: State, event: Event, decision: Decision) -> list[str]:
    """Violations of one decision, its new state included."""
    after = decision.state
    found = check(after)
    if not decision.reason.strip():
        found.append("the decision has no reason")
    if after.at_ns < before.at_ns or after.epoch < before.epoch or after.incidents < before.incidents:
        found.append("time, epoch or the number of incidents went back")
    for name, run in before.runs.items():
        found += [f"run {name}: {violation}" for violation in _succeeds(run, after.runs.get(name))]
    found += _breaker(before, event, after)
    for command in decision.commands:
        found += _command(before, after, command)
    return found


def _derived(state: State) -> Iterator[str]:
    if set(state.free) != {node.node for node in state.nodes.values() if placeable(node)}:
        yield "the set of free nodes is not that of the placeable ones"
    if state.quarantined != sum(node.health in OUT for node in state.nodes.values()):
        yield f"{state.quarantined} is not the number of nodes that are out"
    held = {run.run: len([n for n in run.placement if n]) for run in state.runs.values()}
    if dict(state.holding) != {name: count for name, count in held.items() if count}:
        yield "the count of held nodes is wrong"
    for node in state.nodes.values():
        run = state.runs.get(node.run) if node.run else None
        if node.run and (run is None or run.placement.count(node.node) != 1):
            yield f"node {node.node} thinks that it is in the gang of {node.run}"
        if node.run and (node.health in OUT or not node.present):
            yield f"node {node.node} is {node.health}, present: {node.present}, and in the gang of {node.run}"
        if node.since_ns > state.at_ns:
            yield f"node {node.node} changed in the future"


def _queue(state: State) -> Iterator[str]:
    waiting = {r.run for r in state.runs.values() if r.phase is RunPhase.PENDING or r.hold is Hold.CAPACITY}
    if len(state.queue) != len(set(state.queue)) or set(state.queue) != waiting:
        yield f"the queue {state.queue} is not the set of runs that wait for nodes {sorted(waiting)}"
    elif [*state.queue] != sorted(state.queue, key=lambda name: queue_key(state.runs[name])):
        yield f"the queue {state.queue} is out of order"
    elif state.queue and missing(state.runs[state.queue[0]]) <= len(state.free):
        yield f"run {state.queue[0]} waits though enough nodes are free"


def _ledger(state: State, run: RunState) -> Iterator[str]:
    ledger = run.ledger
    if sum(ledger.accounts.values()) != ledger.since_ns - ledger.opened_ns:
        yield "its ledger does not sum to its time"
    if any(ns < 0 for ns in ledger.accounts.values()):
        yield "an account of its ledger is negative"
    if not ledger.opened_ns <= ledger.since_ns <= state.at_ns:
        yield "its ledger is charged into the future"
    if ledger.closed != (run.phase in TERMINAL):
        yield f"it is {run.phase} and its ledger is closed: {ledger.closed}"


def _gang(state: State, run: RunState) -> Iterator[str]:
    nodes = [node for node in run.placement if node]
    if len(nodes) != len(set(nodes)):
        yield "a node is twice in its gang"
    for name in nodes:
        node = state.nodes.get(name)
        if node is None or node.run != run.run:
            yield f"node {name} of its gang belongs to {node.run if node else 'nobody'}"
    if run.placement and len(run.placement) != run.plan.nodes:
        yield "its placement has the wrong length"
    if bool(nodes) and run.phase not in PLACED:
        yield f"it is {run.phase} and holds nodes"
    vacant_allowed = run.stage is RecoveryPhase.ISOLATE or run.hold is not Hold.NONE
    if run.phase in PLACED and not vacant_allowed and len(nodes) != run.plan.nodes:
        yield f"it is {run.phase} in stage {run.stage} with {len(nodes)} of {run.plan.nodes} nodes"


def _phase(state: State, run: RunState) -> Iterator[str]:
    if (run.stage is not None) != (run.phase in IN_STAGES):
        yield f"it is {run.phase} in stage {run.stage}"
    if run.waiting and run.stage is not RecoveryPhase.ISOLATE:
        yield "it waits for ranks outside of an isolation"
    if run.stage is RecoveryPhase.ISOLATE and not run.waiting:
        yield "it isolates and waits for nobody"
    if bool(run.probing) != (run.phase is RunPhase.CHECKING) or not run.probing.issubset(run.placement):
        yield f"it is {run.phase} and probes {sorted(run.probing)}"
    if run.hold is not Hold.NONE and run.stage is not RecoveryPhase.PLACE:
        yield f"it holds for {run.hold} in stage {run.stage}"
    if run.attempt < 1 and run.phase in PLACED:
        yield f"it is {run.phase} without an attempt"
    if run.recoveries > run.plan.max_recoveries:
        yield "it has used more than its recoveries"
    if run.barren_recoveries > run.recoveries:
        yield "it has had more recoveries without progress than recoveries"
    if run.missing and run.phase is not RunPhase.RUNNING:
        yield f"it is {run.phase} and misses ranks"
    timed = run.phase is RunPhase.CHECKING or (run.stage is not None and run.hold is not Hold.CAPACITY)
    timed = timed or bool(run.missing)
    if timed != bool(run.deadline_ns):
        yield f"it is {run.phase} in stage {run.stage} with deadline {run.deadline_ns}"
    due = next_deadline(state)
    if run.deadline_ns and (due is None or due > run.deadline_ns):
        yield "its deadline is not in the heap"


def _incidents(run: RunState) -> Iterator[str]:
    if (run.incident is not None) != (run.phase is RunPhase.RECOVERING):
        yield f"it is {run.phase}, and an incident is open: {run.incident is not None}"
    told = dict.fromkeys(RECOVERY_CAUSES, 0)
    lasting = [replace(run.incident, ended_at_ns=run.ledger.since_ns, outcome="lasts")] if run.incident else []
    for incident in (*run.incidents, *lasting):
        yield from _marks(incident)
        for phase, ns in incident.phases_ns().items():
            if phase in told:
                told[Cause(phase)] += ns
    for cause, ns in told.items():
        if run.ledger.accounts.get(cause.value, 0) != ns:
            yield f"its ledger and its incidents differ in {cause}"


def _marks(incident: Incident) -> Iterator[str]:
    for (phase, begin), (follower, end) in pairwise(incident.marks):
        if follower not in SUCCESSORS[Cause(phase)] or end < begin:
            yield f"incident {incident.id}: {follower} at {end} after {phase} at {begin}"
    if incident.marks[0] != (Cause.DETECT.value, incident.fault_at_ns):
        yield f"incident {incident.id} does not begin with its fault"
    over = incident.ended_at_ns
    if over and sum(incident.phases_ns().values()) != over - incident.fault_at_ns:
        yield f"the phases of incident {incident.id} do not sum to its time"
    if bool(over) != bool(incident.outcome):
        yield f"incident {incident.id} ended at {over} with outcome '{incident.outcome}'"


def _succeeds(before: RunState, after: RunState | None) -> Iterator[str]:
    if after is None:
        yield "it is forgotten"
    elif before.phase in TERMINAL and after != before:
        yield f"it was {before.phase} and changed"
    elif after.attempt < before.attempt or after.step < before.step or after.recoveries < before.recoveries:
        yield "its attempt, step or number of recoveries went back"
    elif after.ledger.opened_ns != before.ledger.opened_ns or after.ledger.since_ns < before.ledger.since_ns:
        yield "its ledger went back"


def _breaker(before: State, event: Event, after: State) -> Iterator[str]:
    """Only operators may exceed it; what was out before may stay out."""
    limit = before.policy.max_quarantined_share * len(after.nodes)
    if after.quarantined > max(limit, before.quarantined) and not isinstance(event, NodeQuarantined | NodeReadmitted):
        yield f"{after.quarantined} nodes are out, more than the breaker allows"


def _command(before: State, after: State, command: object) -> Iterator[str]:
    if isinstance(command, ProbeNode) and not command.run:
        return
    assert isinstance(command, ProbeNode | StartStore | JoinGang | LeaveGang | StopWorkers)
    was, run = before.runs.get(command.run), after.runs.get(command.run)
    name = type(command).__name__
    if run is None:
        if not isinstance(command, StopWorkers):
            yield f"{name} for an unknown run {command.run}"
    elif command.attempt > run.attempt or (was is not None and command.attempt < was.attempt):
        yield f"{name} for attempt {command.attempt} of run {command.run}, which is in {run.attempt}"
    elif isinstance(command, StartStore | JoinGang | ProbeNode) and command.node not in run.placement:
        yield f"{name} to node {command.node}, which is not in the gang of {command.run}"
