"""From the submission of a run to the start of its first stage: queue, placement, preflight."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery import ledger, node_machine, placement, run_machine, stages
from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.draft import Draft
from orchestrator.recovery.events import NodeProbed, RunPlan, RunSubmitted
from orchestrator.recovery.state import Cause, Hold, RunPhase, RunState


def sound(plan: RunPlan) -> bool:
    return min(plan.nodes, plan.ranks_per_node, plan.replicas, plan.shards) > 0 and (
        plan.world_size == plan.replicas * plan.shards
    )


def submit(draft: Draft, event: RunSubmitted) -> None:
    plan = event.plan
    if event.run in draft.runs:
        draft.say(f"Run {event.run} is known already.")
    elif not sound(plan):
        draft.say(
            f"Run {event.run} is refused: {plan.nodes} nodes of {plan.ranks_per_node} ranks are not"
            f" {plan.replicas} replicas of {plan.shards} shards."
        )
    else:
        book = ledger.open_ledger(draft.now, Cause.WAITING_FOR_CAPACITY)
        run = draft.put_run(RunState(run=event.run, plan=plan, submitted_ns=draft.now, ledger=book))
        draft.say(f"Run {event.run} is queued.")
        run_machine.enqueue(draft, run)


def serve_queue(draft: Draft) -> None:
    """Give free nodes to those that wait, in order.

    A run that does not fit holds up the pending ones behind it, else big runs would starve; only a run that all known
    nodes together can't hold is passed by.
    """
    first = ""
    for name in draft.queue:
        run = draft.runs[name]
        need = placement.missing(run)
        if need <= len(draft.free) and (run.hold is Hold.CAPACITY or not first):
            run_machine.dequeue(draft, name)
            stages.place(draft, run) if run.hold is Hold.CAPACITY else launch(draft, run)
        elif not first and run.plan.nodes <= len(draft.nodes):
            first = name
    explain_queue(draft, first)


def explain_queue(draft: Draft, first: str) -> None:
    """Let every run that waits say for what; `first` is the one that the pending ones behind it must let pass."""
    behind = False
    for name in draft.queue:
        run = draft.runs[name]
        reason = placement.shortage(run, len(draft.free), draft.holding)
        reason += f", run {first} comes before it" if behind and run.phase is RunPhase.PENDING else ""
        behind = behind or name == first
        if not run.reason:
            draft.say(f"Run {name} {reason}.")
        if run.reason != reason:
            draft.put_run(replace(run, reason=reason))


def launch(draft: Draft, run: RunState) -> RunState:
    """Place a pending run whole, then check its nodes or start."""
    run = stages.take_nodes(draft, run)
    run = draft.put_run(replace(run, attempt=run.attempt + 1, ledger=ledger.switch(run.ledger, draft.now, Cause.START)))
    draft.say(f"Run {run.run} is placed on {', '.join(run.placement)}.")
    if not draft.policy.preflight:
        return start(draft, run)
    run = run_machine.move(draft, run, RunPhase.CHECKING, "its nodes are checked")
    run = replace(run, deadline_ns=draft.now + run_machine.seconds(draft.policy.checking_deadline_s))
    return probe(draft, draft.put_run(run), run.placement)


def start(draft: Draft, run: RunState) -> RunState:
    return stages.place(draft, run_machine.move(draft, run, RunPhase.STARTING, f"attempt {run.attempt} starts"))


def probe(draft: Draft, run: RunState, nodes: tuple[str, ...]) -> RunState:
    for node in nodes:
        draft.send(ProbeNode(node=node, purpose="preflight", run=run.run, attempt=run.attempt))
    return draft.put_run(replace(run, probing=run.probing.union(nodes)))


def on_preflight(draft: Draft, event: NodeProbed) -> None:
    run = draft.runs.get(event.run)
    if (
        run is None
        or run.phase is not RunPhase.CHECKING
        or event.attempt != run.attempt
        or event.node not in run.probing
    ):
        draft.say(f"The preflight of {event.node} for run {event.run or '?'} is not awaited.")
        return
    node = node_machine.note_findings(draft, draft.nodes[event.node], event.findings)
    if event.ok:
        run = draft.put_run(replace(run, probing=run.probing - {event.node}))
        draft.say(f"Node {event.node} passed the preflight of run {run.run}; {len(run.probing)} to go.")
        if not run.probing:
            start(draft, run)
        return
    why = event.findings[0].sentence if event.findings else "no finding says why"
    run = run_machine.vacate(draft, run, event.node)
    node = draft.nodes[node.node]
    node_machine.take_out(draft, node, f"failed the preflight of run {run.run} ({why})")
    replace_missing(draft, run)


def silent(draft: Draft, run: RunState) -> None:
    """The preflight's deadline: nodes that did not answer are suspect and replaced."""
    for name in sorted(run.probing):
        run = run_machine.vacate(draft, run, name)
        node_machine.suspect(draft, draft.nodes[name], f"did not answer the preflight of run {run.run} in time")
    replace_missing(draft, run)


def replace_missing(draft: Draft, run: RunState) -> RunState:
    """Fill the vacant indices and probe what is new; without enough free nodes the run goes back to the queue."""
    present = set(run.placement)
    run = draft.put_run(replace(run, probing=run.probing & present))
    if placement.missing(run) > len(draft.free):
        return stages.back_to_queue(draft, run)
    run = stages.take_nodes(draft, run)
    new = tuple(name for name in run.placement if name not in present)
    draft.say(f"Run {run.run} takes {', '.join(new)} instead.")
    run = replace(run, deadline_ns=draft.now + run_machine.seconds(draft.policy.checking_deadline_s))
    return probe(draft, run, new)
