"""The way back: what a fault does to a run, from the first report to the next attempt.

A fault opens an incident (or joins the one that lasts) and takes the gang apart: ISOLATE ends the trainers of
condemned nodes, lets the others leave with their state, and waits until every rank is known to be out or dead. Then
the attempt is raised and the stages begin anew. In PLACE nobody has joined yet, so a node lost there is only replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

from immutables import Map
from msgspec.structs import replace

from orchestrator.recovery import incident as incidents
from orchestrator.recovery import ledger as ledgers
from orchestrator.recovery import node_machine, placement, run_machine, stages
from orchestrator.recovery.commands import StopWorkers
from orchestrator.recovery.draft import Draft
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Cause, Hold, NodeHealth, RecoveryPhase, RunPhase, RunState, Trouble

# Attempts without a new step after which processes are no longer trusted: all are ended and started again.
CLIMB_AFTER = 2
# Troubles that count against the node they are about: a program's own error does not.
BLAMED = frozenset({"worker_exited", "worker_hung", "node_lost", "command_failed"})
# The stages in which trainers may be in the attempt; so they are when the run is running.
JOINED = frozenset({RecoveryPhase.FORM, RecoveryPhase.RESTORE, RecoveryPhase.FIRST_STEP})


def active(run: RunState) -> bool:
    """Whether trainers may be in the present attempt and nobody takes it apart yet."""
    return run.phase is RunPhase.RUNNING or run.stage in JOINED


def fail(
    draft: Draft,
    run: RunState,
    trouble: Trouble,
    event: Event,
    *,
    dead: Iterable[int] = (),
    stop: Iterable[str] = (),
    restart_all: bool = False,
) -> RunState:
    """Act on a fault of a run that starts, runs or recovers; returns the run after it.

    `dead` ranks have ended; trainers on the nodes `stop` shall be ended; `restart_all` trusts no process any more.
    Nodes that can't stay have been put out of the gang before.
    """
    draft.say(f"Run {run.run}: {trouble.sentence}.")
    if run.stage is RecoveryPhase.ISOLATE:
        return absorb(draft, run, event, trouble, dead=dead, stop=stop)
    run = presume_progress(draft, run)
    verdict = hopeless(draft, run, trouble)
    run = report(draft, run, trouble, event)
    if verdict:
        run = replace(run, stopping=run.stopping.union(stop))
        return run_machine.end(draft, run, RunPhase.FAILED, verdict)
    restart_all = restart_all or not run.plan.speaks_protocol or run.barren_recoveries >= CLIMB_AFTER
    return isolate(draft, run, trouble, dead, (*stop, *placement.members(run)) if restart_all else stop)


def presume_progress(draft: Draft, run: RunState) -> RunState:
    """Steps of a program without the worker protocol can't be seen: having run for a first step's deadline counts as one."""
    long_ns = run_machine.seconds(draft.policy.first_step_deadline_s)
    if run.plan.speaks_protocol or run.phase is not RunPhase.RUNNING or draft.now - run.stage_since_ns < long_ns:
        return run
    return draft.put_run(replace(run, barren_recoveries=0))


def hopeless(draft: Draft, run: RunState, trouble: Trouble) -> str:
    """Why another recovery is not worth it; empty when it is."""
    if run.recoveries >= run.plan.max_recoveries:
        return f"{trouble.sentence}, and its {run.plan.max_recoveries} recoveries are used up"
    limit = draft.policy.max_recoveries_without_progress
    if run.barren_recoveries >= limit:
        return f"{trouble.sentence}, and {limit} recoveries in a row have brought no new step"
    return ""


def isolate(draft: Draft, run: RunState, trouble: Trouble, dead: Iterable[int], stop: Iterable[str]) -> RunState:
    """Begin to take the gang apart. In PLACE nobody is in the attempt, so nobody is awaited."""
    joined = active(run)
    stopping = frozenset(stop)
    if run.phase is RunPhase.RUNNING:
        run = run_machine.move(draft, run, RunPhase.RECOVERING, trouble.sentence)
    run = run_machine.enter(draft, run, RecoveryPhase.ISOLATE, trouble.sentence)
    awaited = range(run.plan.world_size) if joined else ()
    run = draft.put_run(
        replace(
            run,
            waiting=frozenset(awaited).difference(dead, run.completed, run.missing),
            missing=frozenset(),
            faulted=frozenset(),
            stopping=stopping,
            holders=Map() if joined or stopping else run.holders,
            trouble=trouble,
        )
    )
    nodes = placement.members(run)
    stages.isolate_commands(draft, run, [*nodes, *sorted(stopping.difference(nodes))])
    return go_on(draft, run)


def report(draft: Draft, run: RunState, trouble: Trouble, event: Event) -> RunState:
    """Tell the incident of the fault; a running run gets one, a starting run has none."""
    if run.phase is RunPhase.RUNNING:
        return open_incident(draft, run, trouble, event)
    if run.incident is None:
        return run
    joined = incidents.join(run.incident, trouble)
    named = (joined.cause, joined.node) == (trouble.cause, trouble.node) != (run.incident.cause, run.incident.node)
    run = draft.put_run(replace(run, incident=joined))
    return backdate(draft, run, trouble, event) if named else run


def open_incident(draft: Draft, run: RunState, trouble: Trouble, event: Event) -> RunState:
    """Cut the running interval at the fault: from there on the time belongs to the detection."""
    since_ns, cause = run.ledger.since_ns, run.ledger.cause
    observed_ns = min(max(event.observed_at_ns or draft.now, since_ns), draft.now)
    fault_ns = min(max(began_ns(draft, trouble, event, observed_ns), since_ns), observed_ns)
    book = ledgers.switch(ledgers.switch(run.ledger, fault_ns, Cause.DETECT), observed_ns, Cause.DECIDE)
    draft.incidents += 1
    incident = incidents.open_incident(draft.incidents, run.run, trouble, run.step, fault_ns, observed_ns)
    return draft.put_run(replace(run, ledger=book, incident=incident, running_since_ns=since_ns, running_cause=cause))


def began_ns(draft: Draft, trouble: Trouble, event: Event, otherwise_ns: int) -> int:
    """When the fault began: a fault test on that node knows best, and is used up by this; then the event itself."""
    node = draft.nodes.get(trouble.node)
    if node is not None and node.injected_at_ns:
        draft.put_node(replace(node, injected_at_ns=0))
        return node.injected_at_ns
    return event.fault_at_ns or event.observed_at_ns or otherwise_ns


def backdate(draft: Draft, run: RunState, trouble: Trouble, event: Event) -> RunState:
    """A symptom had opened the incident and now its cause is known, which may have begun earlier."""
    assert run.incident is not None
    began = began_ns(draft, trouble, event, run.incident.fault_at_ns)
    fault_ns = max(run.running_since_ns, min(began, run.incident.fault_at_ns))
    earlier_ns = run.incident.fault_at_ns - fault_ns
    sources = (run.running_cause, Cause.DATA_STALL, Cause.CHECKPOINT_STALL)
    book = ledgers.transfer(run.ledger, sources, Cause.DETECT, earlier_ns)
    return draft.put_run(replace(run, ledger=book, incident=incidents.backdate(run.incident, fault_ns)))


def absorb(
    draft: Draft,
    run: RunState,
    event: Event,
    trouble: Trouble | None = None,
    *,
    dead: Iterable[int] = (),
    stop: Iterable[str] = (),
) -> RunState:
    """Another report while the gang is taken apart."""
    if trouble is not None:
        run = report(draft, run, trouble, event)
        known = run.trouble
        if known is None or incidents.outranks((trouble.cause, trouble.node), (known.cause, known.node)):
            run = replace(run, trouble=trouble)
    new = frozenset(stop) - run.stopping
    holders = run_machine.without(run.holders, dead)
    for node in new:
        holders = run_machine.without(holders, placement.ranks_of(run, node))
    waiting = run.waiting.difference(dead)
    run = draft.put_run(replace(run, waiting=waiting, stopping=run.stopping | new, holders=holders))
    stages.isolate_commands(draft, run, sorted(new))
    return go_on(draft, run)


def go_on(draft: Draft, run: RunState) -> RunState:
    """Raise the attempt once nobody is awaited any more; wait before the second and later one without a new step."""
    if run.waiting:
        return run
    run = shed_suspects(draft, blame(draft, run))
    barren = run.barren_recoveries + 1
    run = draft.put_run(
        replace(
            run,
            attempt=run.attempt + 1,
            recoveries=run.recoveries + 1,
            barren_recoveries=barren,
            store=None,
            stopping=frozenset(),
            faulted=frozenset(),
            completed=frozenset(),
            incident=run.incident and replace(run.incident, rounds=run.incident.rounds + 1),
        )
    )
    if barren < 2 or placement.missing(run) > len(draft.free):
        return stages.place(draft, run)  # one that must wait for nodes has its pause, and its place in the queue
    vacant = placement.missing(run) > 0
    run = stages.take_nodes(draft, run)  # now, or a queued run takes them during the pause
    if vacant:
        draft.say(f"Run {run.run} goes on with {', '.join(run.placement)}.")
    wait_s = min(draft.policy.backoff_max_s, draft.policy.backoff_base_s * 2 ** (barren - 2))
    reason = f"waits {wait_s:g} s before recovery {barren} without a new step"
    draft.say(f"Run {run.run} {reason}.")
    due_ns = draft.now + run_machine.seconds(wait_s)
    return run_machine.hold(draft, run, Hold.BACKOFF, Cause.IDLE, due_ns, reason)


def blame(draft: Draft, run: RunState) -> RunState:
    """Count the failure against its node; one that fails too often leaves the gang, well as its GPUs may look."""
    trouble, policy = run.trouble, draft.policy
    if trouble is None or trouble.cause not in BLAMED or trouble.node not in draft.nodes:
        return run
    node = node_machine.count_failure(draft, draft.nodes[trouble.node])
    count = len(node.failures_ns)
    if count < policy.node_failures_to_quarantine or node.health not in (NodeHealth.HEALTHY, NodeHealth.SUSPECT):
        return run
    if node.run == run.run and not node_machine.breaker_holds(draft):
        stages.stop_workers(draft, run, node.node, "its node is quarantined")
        run = run_machine.vacate(draft, run, node.node)
        node = draft.nodes[node.node]
    reason = f"{count} trainer failures within {policy.node_failure_window_s:g} s"
    node_machine.take_out(draft, node, reason)
    return run


def shed_suspects(draft: Draft, run: RunState) -> RunState:
    """Replace suspect members while there are spares to do so: the gang is apart anyway."""
    for name in placement.members(run):
        if draft.nodes[name].health is NodeHealth.SUSPECT and len(draft.free) > placement.missing(run):
            draft.say(f"Run {run.run} leaves the suspect node {name}.")
            stages.stop_workers(draft, run, name, "the node is suspect")
            run = run_machine.vacate(draft, run, name)
    return run


def evacuate(
    draft: Draft, run: RunState, node: str, trouble: Trouble, event: Event, gone: range, *, alive: bool
) -> None:
    """Go on without a node that has just been put out of the gang, where it held the ranks `gone`."""
    if run.stage is RecoveryPhase.PLACE:
        draft.say(f"Run {run.run}: {trouble.sentence}.")
        if alive:
            stages.stop_workers(draft, run, node, trouble.sentence)
        run = report(draft, run, trouble, event)
        if run.hold is not Hold.BACKOFF:
            stages.place(draft, run)
    elif alive:
        fail(draft, run, trouble, event, stop=(node,))
    else:
        fail(draft, run, trouble, event, dead=gone)


def overdue(draft: Draft, run: RunState, event: Event) -> None:
    """The deadline of the present stage has passed."""
    if run.hold is Hold.BACKOFF:
        draft.say(f"Run {run.run} has waited long enough.")
        stages.place(draft, run)
    elif run.phase is RunPhase.RUNNING:
        rank = min(run.missing)
        node = placement.node_of(run, rank)
        sentence = f"rank {rank} on {node} was gone when its node connected again, and nothing tells how it ended"
        fail(draft, run, Trouble(cause="worker_exited", node=node, rank=rank, sentence=sentence), event)
    elif run.stage is RecoveryPhase.ISOLATE:
        kill_silent(draft, run, event)
    else:
        took_s = (draft.now - run.stage_since_ns) / 1e9
        cause = f"{run.stage}{incidents.DEADLINE}"
        node = run.store[0] if run.stage is RecoveryPhase.PLACE and run.store else ""
        sentence = f"attempt {run.attempt} is still in {run.stage} after {took_s:g} s"
        fail(draft, run, Trouble(cause=cause, node=node, sentence=sentence), event, restart_all=True)


def kill_silent(draft: Draft, run: RunState, event: Event) -> None:
    """Ranks that neither left nor ended are killed and no longer awaited. With no better cause known, they are it."""
    silent = sorted(run.waiting)
    draft.say(f"Run {run.run} kills those that did not leave in time: rank {', '.join(map(str, silent))}.")
    nodes = dict.fromkeys(node for rank in silent if (node := placement.node_of(run, rank)))
    for node in (*nodes, *sorted(run.stopping.difference(run.placement))):
        draft.send(StopWorkers(node=node, run=run.run, attempt=run.attempt, grace_s=0.0, why="did not leave in time"))
        run = replace(run, holders=run_machine.without(run.holders, placement.ranks_of(run, node)))
    trouble = None
    if nodes and run.trouble is not None and not run.trouble.node:
        node = next(iter(nodes))
        rank = next(rank for rank in silent if placement.node_of(run, rank) == node)
        trouble = Trouble(cause="worker_hung", node=node, rank=rank, sentence=f"rank {rank} on {node} did not leave")
    absorb(draft, draft.put_run(run), event, trouble, dead=silent)
