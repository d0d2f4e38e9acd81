"""What nodes report and operators order about nodes, and what that means for the run whose gang a node is part of."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery import failure, launch, node_machine, placement, run_machine, stages
from orchestrator.recovery.commands import StopWorkers
from orchestrator.recovery.draft import TERMINAL, Draft
from orchestrator.recovery.events import (
    Event,
    FaultInjected,
    NodeFindings,
    NodeLost,
    NodeProbed,
    NodeQuarantined,
    NodeReadmitted,
    NodeReady,
    NodeRetired,
)
from orchestrator.recovery.state import NodeHealth, NodeState, RecoveryPhase, RunPhase, RunState, Trouble


def on_ready(draft: Draft, event: NodeReady) -> None:
    before = draft.nodes.get(event.node)
    rebooted = before is not None and before.boot_id not in ("", event.boot_id)
    node = node_machine.appear(draft, event)
    stop_strays(draft, node, event)
    if node.run:
        reconcile(draft, draft.runs[node.run], node, event, rebooted=rebooted)


def stop_strays(draft: Draft, node: NodeState, event: NodeReady) -> None:
    """End trainers and stores of runs that this node has no part in; a run that the core does not know has none anywhere."""
    newest: dict[str, int] = {}
    for name, attempt in (*((name, attempt) for name, attempt, _ in event.workers), *event.stores):
        newest[name] = max(attempt, newest.get(name, 0))
    for name, attempt in sorted(newest.items()):
        run = draft.runs.get(name)
        if run is not None and node.run == name:
            continue
        why = (
            f"run {name} has no part on this node"
            if run is None or run.phase not in TERMINAL
            else f"run {name} is over"
        )
        fence = attempt if run is None else run.attempt
        draft.say(f"Node {node.node} still has processes of run {name}: they are ended.")
        draft.send(StopWorkers(node=node.node, run=name, attempt=fence, grace_s=draft.policy.stop_grace_s, why=why))


def reconcile(draft: Draft, run: RunState, node: NodeState, event: NodeReady, *, rebooted: bool) -> None:
    """Compare the trainers that a node of the gang holds with those that it should hold."""
    alive = set() if rebooted else {rank for name, _, rank in event.workers if name == run.run}
    ranks = placement.ranks_of(run, node.node)
    gone = [rank for rank in ranks if rank not in alive and rank not in run.completed]
    if run.stage is RecoveryPhase.PLACE:
        run = draft.put_run(replace(run, holders=run_machine.without(run.holders, gone)))
    must_live = failure.active(run) and (run.stage is not RecoveryPhase.FORM or rebooted)
    news = bool(gone) and (must_live or (run.stage is RecoveryPhase.ISOLATE and not run.waiting.isdisjoint(gone)))
    if news and run.phase is RunPhase.RUNNING and not rebooted:
        await_reports(draft, run, node.node, gone)
        return
    leaving = run.stage is RecoveryPhase.ISOLATE
    if news and leaving and node.node in run.stopping:
        run = failure.absorb(draft, run, event, dead=gone)
    elif news:
        how = "was started anew" if rebooted else "came back without it" if len(gone) == 1 else "came back without them"
        ranks_gone = f"{'rank' if len(gone) == 1 else 'ranks'} {', '.join(map(str, gone))}"
        sentence = f"{ranks_gone} ended: {node.node} {how}"
        trouble = Trouble(cause="worker_exited", node=node.node, rank=gone[0], sentence=sentence)
        run = failure.fail(draft, run, trouble, event, dead=gone)
    if not news or (leaving and run.stage is RecoveryPhase.ISOLATE):
        sent = stages.reissue(draft, run, only=node.node)
        if sent:
            draft.say(f"Run {run.run}: its last order to {node.node} is sent again.")


def await_reports(draft: Draft, run: RunState, node: str, gone: list[int]) -> None:
    """Its supervisor has lived on, so its kept reports follow and say how these ranks ended, perhaps with every step done."""
    due_ns = draft.now + run_machine.seconds(draft.policy.reconcile_grace_s)
    draft.put_run(replace(run, missing=run.missing.union(gone), deadline_ns=run.deadline_ns or due_ns))
    draft.say(f"Run {run.run} lacks rank {', '.join(map(str, gone))} on {node}: its reports shall tell why.")


def on_lost(draft: Draft, event: NodeLost) -> None:
    node = draft.nodes[event.node]
    if not node.present:
        draft.say(f"Node {node.node} is known to be lost.")
        return
    if not node.run:
        draft.say(f"Node {node.node} is lost: {event.evidence}.")
        node_machine.disappear(draft, node, event.evidence)
        return
    trouble = Trouble(cause="node_lost", node=node.node, sentence=f"node {node.node} is lost: {event.evidence}")
    put_out(draft, node, trouble, event)


def put_out(draft: Draft, node: NodeState, trouble: Trouble, event: Event, *, automatic: bool = True) -> None:
    """Take a node from its gang: first out of the gang, then out of use, then the run goes on without it."""
    run = draft.runs[node.run]
    gone = placement.ranks_of(run, node.node)
    lost = isinstance(event, NodeLost)
    run = run_machine.vacate(draft, run, node.node)
    node = draft.nodes[node.node]
    if lost:
        node_machine.disappear(draft, node, trouble.sentence)
    else:
        node_machine.take_out(draft, node, trouble.sentence, automatic=automatic)
    if run.phase is RunPhase.CHECKING:
        draft.say(f"Run {run.run}: {trouble.sentence}.")
        launch.replace_missing(draft, run)
    else:
        failure.evacuate(draft, run, node.node, trouble, event, gone, alive=not lost)


def on_findings(draft: Draft, event: NodeFindings) -> None:
    node = node_machine.note_findings(draft, draft.nodes[event.node], event.findings)
    bad = node_machine.quarantining(draft, event.findings)
    if bad is None:
        worst = event.findings[0].sentence if event.findings else "nothing is wrong any more"
        draft.say(f"Node {node.node} stays {node.health}: {worst}.")
        return
    evacuated = not node_machine.breaker_holds(draft) or bad.severity == "fatal"
    if node.run and (evacuated or draft.runs[node.run].phase is RunPhase.CHECKING):
        put_out(draft, node, Trouble(cause=bad.cause, node=node.node, sentence=bad.sentence.rstrip(".")), event)
    elif node.run:
        node_machine.suspect(draft, node, f"{bad.sentence}; the breaker keeps it in its gang")
    else:
        node_machine.take_out(draft, node, bad.sentence.rstrip("."))


def on_quarantined(draft: Draft, event: NodeQuarantined) -> None:
    node = draft.nodes[event.node]
    why = f"{event.who} quarantined it" + (f": {event.why}" if event.why else "")
    if node.run:
        trouble = Trouble(cause="node_quarantined", node=node.node, sentence=f"{event.who} quarantined {node.node}")
        put_out(draft, node, trouble, event, automatic=False)
    else:
        node_machine.take_out(draft, node, why, automatic=False)


def on_readmitted(draft: Draft, event: NodeReadmitted) -> None:
    why = f"{event.who} readmits it" + (f": {event.why}" if event.why else "")
    node_machine.readmit(draft, draft.nodes[event.node], why)


def on_retired(draft: Draft, event: NodeRetired) -> None:
    node = draft.nodes[event.node]
    if node.run:
        draft.say(f"Node {node.node} is in the gang of {node.run}: quarantine it first, then retire it.")
        return
    node_machine.retire(draft, node, f"{event.who} retired it" + (f": {event.why}" if event.why else ""))


def on_probed(draft: Draft, event: NodeProbed) -> None:
    if event.purpose == "probation":
        node_machine.end_probation(draft, draft.nodes[event.node], ok=event.ok, findings=event.findings)
    else:
        launch.on_preflight(draft, event)


def on_injected(draft: Draft, event: FaultInjected) -> None:
    node = draft.nodes[event.node]
    at_ns = min(event.fault_at_ns or event.observed_at_ns or draft.now, draft.now)
    if _already_taken(draft, node, at_ns):
        draft.say(f"An incident of {node.node} has begun since the test by {event.who}: it stands for it.")
        return
    draft.put_node(replace(node, injected_at_ns=at_ns))
    draft.say(f"A test by {event.who} injects {event.fault} into {node.node}: its next incident dates from there.")


def _already_taken(draft: Draft, node: NodeState, at_ns: int) -> bool:
    """The word of the test came after that of its outcome, or twice: the node's next incident would get a wrong begin."""
    run = draft.runs.get(node.run)
    if run is None:
        return False
    incidents = (*run.incidents[-1:], *((run.incident,) if run.incident else ()))
    return any(i.node == node.node and i.fault_at_ns >= at_ns for i in incidents)


def probe_again(draft: Draft) -> None:
    """Ask all nodes on probation again, since a probe may have been lost with the last daemon."""
    for name in sorted(draft.nodes):
        if draft.nodes[name].health is NodeHealth.PROBATION and draft.nodes[name].present:
            node_machine.readmit(draft, draft.nodes[name], "")
