"""The machine of one run: which phase may follow which, which stage may follow which, and what each step charges.

A run is in a stage while it starts or recovers. Every change of phase or stage goes through `move` and `enter`, so that
ledger, incident and deadline always agree with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from immutables import Map
from msgspec.structs import replace

from orchestrator.recovery import incident as incidents
from orchestrator.recovery import ledger as ledgers
from orchestrator.recovery import placement
from orchestrator.recovery.commands import StopWorkers
from orchestrator.recovery.draft import TERMINAL, Draft
from orchestrator.recovery.node_machine import IllegalTransitionError
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Cause, Hold, RecoveryPhase, RunPhase, RunState

PHASES: dict[RunPhase, frozenset[RunPhase]] = {
    RunPhase.PENDING: frozenset({RunPhase.CHECKING, RunPhase.STARTING, RunPhase.CANCELLED}),
    RunPhase.CHECKING: frozenset({RunPhase.STARTING, RunPhase.PENDING, RunPhase.CANCELLED}),
    RunPhase.STARTING: frozenset({RunPhase.RUNNING, RunPhase.PENDING, *TERMINAL}),
    RunPhase.RUNNING: frozenset({RunPhase.RECOVERING, *TERMINAL}),
    RunPhase.RECOVERING: frozenset({RunPhase.RUNNING, *TERMINAL}),
    RunPhase.COMPLETED: frozenset(),
    RunPhase.FAILED: frozenset(),
    RunPhase.CANCELLED: frozenset(),
}

# None is outside of any stage. PLACE may be entered again: a node lost before anybody joined is only replaced.
STAGES: dict[RecoveryPhase | None, frozenset[RecoveryPhase]] = {
    None: frozenset({RecoveryPhase.PLACE, RecoveryPhase.ISOLATE}),
    RecoveryPhase.ISOLATE: frozenset({RecoveryPhase.PLACE}),
    RecoveryPhase.PLACE: frozenset({RecoveryPhase.PLACE, RecoveryPhase.FORM, RecoveryPhase.ISOLATE}),
    RecoveryPhase.FORM: frozenset({RecoveryPhase.RESTORE, RecoveryPhase.ISOLATE}),
    RecoveryPhase.RESTORE: frozenset({RecoveryPhase.FIRST_STEP, RecoveryPhase.ISOLATE}),
    RecoveryPhase.FIRST_STEP: frozenset({RecoveryPhase.ISOLATE}),
}

OUTCOMES = {RunPhase.COMPLETED: "recovered", RunPhase.FAILED: "failed", RunPhase.CANCELLED: "cancelled"}
ENDS = {RunPhase.COMPLETED: "is completed", RunPhase.FAILED: "has failed", RunPhase.CANCELLED: "is cancelled"}


def seconds(seconds_: float) -> int:
    return round(seconds_ * 1e9)


def stage_deadline_s(policy: Policy, stage: RecoveryPhase) -> float:
    return {
        RecoveryPhase.ISOLATE: policy.isolate_deadline_s,
        RecoveryPhase.PLACE: policy.place_deadline_s,
        RecoveryPhase.FORM: policy.form_deadline_s,
        RecoveryPhase.RESTORE: policy.restore_deadline_s,
        RecoveryPhase.FIRST_STEP: policy.first_step_deadline_s,
    }[stage]


def deadline_ns(draft: Draft, run: RunState, stage: RecoveryPhase) -> int:
    """When the stage, entered now, is late.

    The stages of a start share one deadline, since a first start forks, compiles and loads at its own pace.
    """
    if run.phase is RunPhase.STARTING and stage is not RecoveryPhase.ISOLATE:
        if stage is RecoveryPhase.PLACE:
            return draft.now + seconds(draft.policy.start_deadline_s)
        return run.deadline_ns
    return draft.now + seconds(stage_deadline_s(draft.policy, stage))


def charge(run: RunState, at_ns: int, cause: Cause) -> RunState:
    """Let `cause` run from `at_ns` on, in the ledger and in the open incident."""
    incident = run.incident and incidents.mark(run.incident, cause, at_ns)
    return replace(run, ledger=ledgers.switch(run.ledger, at_ns, cause), incident=incident)


def move(draft: Draft, run: RunState, phase: RunPhase, reason: str) -> RunState:
    """Raises IllegalTransitionError when the table has no such step."""
    if phase not in PHASES[run.phase]:
        raise IllegalTransitionError(f"run {run.run}: {run.phase} -> {phase}")
    return draft.put_run(replace(run, phase=phase, reason=reason))


def enter(draft: Draft, run: RunState, stage: RecoveryPhase, reason: str) -> RunState:
    """Raises IllegalTransitionError when the table has no such step."""
    if stage not in STAGES[run.stage]:
        raise IllegalTransitionError(f"run {run.run}: stage {run.stage} -> {stage}")
    due_ns = deadline_ns(draft, run, stage)
    run = replace(run, stage=stage, stage_since_ns=draft.now, deadline_ns=due_ns, hold=Hold.NONE, reason=reason)
    return draft.put_run(charge(run, draft.now, _cause(run, stage)))


def _cause(run: RunState, stage: RecoveryPhase) -> Cause:
    return Cause(stage.value) if run.phase is RunPhase.RECOVERING else Cause.START


def hold(draft: Draft, run: RunState, why: Hold, cause: Cause, due_ns: int, reason: str) -> RunState:
    """Wait in PLACE before anything is placed; `due_ns` 0: until somebody brings what is waited for."""
    if run.stage not in (RecoveryPhase.ISOLATE, RecoveryPhase.PLACE):
        raise IllegalTransitionError(f"run {run.run}: stage {run.stage} -> waiting in place")
    since_ns = draft.now if run.hold is not why else run.stage_since_ns
    run = replace(
        run, stage=RecoveryPhase.PLACE, stage_since_ns=since_ns, deadline_ns=due_ns, hold=why, reason=reason, store=None
    )
    return draft.put_run(charge(run, draft.now, cause))


def train(draft: Draft, run: RunState, cause: Cause, reason: str) -> RunState:
    """RUNNING from now on."""
    run = move(draft, run, RunPhase.RUNNING, reason)
    run = replace(
        run, stage=None, stage_since_ns=draft.now, deadline_ns=0, ledger=ledgers.switch(run.ledger, draft.now, cause)
    )
    return draft.put_run(run)


def release(draft: Draft, run: RunState) -> RunState:
    """Give every node of the gang back."""
    for name in placement.members(run):
        draft.put_node(replace(draft.nodes[name], run=""))
    return draft.put_run(replace(run, placement=()))


def vacate(draft: Draft, run: RunState, node: str) -> RunState:
    """Put one node out of the gang: its index becomes vacant, and what its ranks held no longer counts."""
    holders = without(run.holders, placement.ranks_of(run, node))
    draft.put_node(replace(draft.nodes[node], run=""))
    left = tuple("" if name == node else name for name in run.placement)
    return draft.put_run(replace(run, placement=left, holders=holders))


def without(holders: Map[int, int], ranks: Iterable[int]) -> Map[int, int]:
    for rank in ranks:
        if rank in holders:
            holders = holders.delete(rank)
    return holders


def stop_everywhere(draft: Draft, run: RunState, grace_s: float, why: str) -> None:
    """End the run's processes on every node that may still have some."""
    if run.phase in (RunPhase.PENDING, RunPhase.CHECKING):
        return
    others = sorted(run.stopping.difference(run.placement))
    for node in (*placement.members(run), *others):
        draft.send(StopWorkers(node=node, run=run.run, attempt=run.attempt, grace_s=grace_s, why=why))


def end(draft: Draft, run: RunState, phase: RunPhase, reason: str) -> RunState:
    """Finish the run: processes ended, nodes given back, incident and ledger closed."""
    stop_everywhere(draft, run, draft.policy.stop_grace_s, reason)
    if run.run in draft.queue:
        dequeue(draft, run.run)
    run = move(draft, release(draft, run), phase, reason)
    run = close_incident(run, draft.now, OUTCOMES[phase])
    draft.say(f"Run {run.run} {ENDS[phase]}: {reason}.")
    return draft.put_run(
        replace(
            run,
            stage=None,
            deadline_ns=0,
            hold=Hold.NONE,
            trouble=None,
            waiting=frozenset(),
            missing=frozenset(),
            faulted=frozenset(),
            stopping=frozenset(),
            probing=frozenset(),
            store=None,
            ledger=ledgers.close(run.ledger, draft.now),
            finished_ns=draft.now,
        )
    )


def close_incident(run: RunState, at_ns: int, outcome: str) -> RunState:
    if run.incident is None:
        return run
    closed = incidents.close(run.incident, at_ns, outcome)
    return replace(run, incident=None, incidents=(*run.incidents, closed))


def enqueue(draft: Draft, run: RunState) -> None:
    """Let the run wait for nodes. Those that hold some come first: waiting with nodes in hand wastes them."""
    names = {*draft.queue, run.run}
    draft.queue = tuple(sorted(names, key=lambda name: queue_key(draft.runs[name])))
    draft.serve_queue = True


def queue_key(run: RunState) -> tuple[bool, int, int, str]:
    return (run.phase is RunPhase.PENDING, -run.plan.priority, run.submitted_ns, run.run)


def dequeue(draft: Draft, name: str) -> None:
    draft.queue = tuple(other for other in draft.queue if other != name)
    draft.serve_queue = True
