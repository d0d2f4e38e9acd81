"""The machine of one node: which health may follow which, and what moves it. It knows nothing of runs.

A node's membership in a gang (`NodeState.run`) is the run machine's to change; a node that is taken out here must have
left its gang before.
"""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.draft import OUT, Draft
from orchestrator.recovery.events import Finding, NodeReady
from orchestrator.recovery.state import NodeHealth, NodeState

TRANSITIONS: dict[NodeHealth, frozenset[NodeHealth]] = {
    NodeHealth.HEALTHY: frozenset({NodeHealth.SUSPECT, NodeHealth.QUARANTINED, NodeHealth.RETIRED}),
    NodeHealth.SUSPECT: frozenset({NodeHealth.QUARANTINED, NodeHealth.PROBATION, NodeHealth.RETIRED}),
    NodeHealth.QUARANTINED: frozenset({NodeHealth.REMEDIATING, NodeHealth.PROBATION, NodeHealth.RETIRED}),
    NodeHealth.REMEDIATING: frozenset({NodeHealth.QUARANTINED, NodeHealth.RETIRED}),
    NodeHealth.PROBATION: frozenset({NodeHealth.HEALTHY, NodeHealth.QUARANTINED, NodeHealth.RETIRED}),
    NodeHealth.RETIRED: frozenset(),
}

SERIOUS = ("error", "fatal")


class IllegalTransitionError(Exception):
    """A machine was asked for a step that its table does not have: a bug of the core."""


def change(draft: Draft, node: NodeState, health: NodeHealth, reason: str) -> NodeState:
    """Raises IllegalTransitionError when the table has no such step or the node is still in a gang."""
    if health not in TRANSITIONS[node.health]:
        raise IllegalTransitionError(f"node {node.node}: {node.health} -> {health}")
    if node.run and health in OUT | {NodeHealth.RETIRED}:
        raise IllegalTransitionError(f"node {node.node}: {health} while it is in the gang of {node.run}")
    return draft.put_node(replace(node, health=health, reason=reason))


def appear(draft: Draft, event: NodeReady) -> NodeState:
    """Its supervisor is connected. A node that went away in quarantine is back from repair, still in quarantine."""
    node = draft.nodes.get(event.node)
    if node is None:
        node = NodeState(node=event.node, gpus=event.gpus, boot_id=event.boot_id, since_ns=draft.now)
        draft.say(f"Node {event.node} is new and spare.")
        return draft.put_node(node)
    if node.health is NodeHealth.REMEDIATING:
        node = change(draft, node, NodeHealth.QUARANTINED, f"{node.reason}; back since, waits to be readmitted")
    known = (node.present, node.gpus, node.boot_id) == (True, event.gpus, event.boot_id)
    draft.say(f"Node {event.node} is {'still' if known else 'back and'} {node.health}.")
    if node.health is NodeHealth.PROBATION:
        draft.send(ProbeNode(node=node.node, purpose="probation"))
    if known:
        return node
    return draft.put_node(replace(node, present=True, gpus=event.gpus, boot_id=event.boot_id))


def disappear(draft: Draft, node: NodeState, evidence: str) -> NodeState:
    """It can't be reached. In quarantine that is taken for repair; a probation it can't pass ends."""
    gone = replace(node, present=False)
    if node.health is NodeHealth.QUARANTINED:
        return change(draft, gone, NodeHealth.REMEDIATING, node.reason)
    if node.health is NodeHealth.PROBATION:
        return change(draft, gone, NodeHealth.QUARANTINED, f"lost during its probation: {evidence}")
    return draft.put_node(gone)


def quarantining(draft: Draft, findings: tuple[Finding, ...]) -> Finding | None:
    """The gravest finding that asks to take the node out: an error or worse whose action is one of the policy's."""
    bad = [f for f in findings if f.severity in SERIOUS and f.action in draft.policy.quarantine_actions]
    return max(bad, key=lambda f: SERIOUS.index(f.severity), default=None)


def note_findings(draft: Draft, node: NodeState, findings: tuple[Finding, ...]) -> NodeState:
    relevant = tuple(f for f in findings if f.severity != "info")
    return node if relevant == node.findings else draft.put_node(replace(node, findings=relevant))


def breaker_holds(draft: Draft) -> bool:
    """Whether one more automatic quarantine would exceed the policy's share of the known nodes."""
    return draft.quarantined + 1 > draft.policy.max_quarantined_share * len(draft.nodes)


def take_out(draft: Draft, node: NodeState, reason: str, *, automatic: bool = True) -> NodeState:
    """Quarantine a node that is in no gang, or hold it as suspect when the breaker forbids more quarantines."""
    if node.health in (NodeHealth.QUARANTINED, NodeHealth.REMEDIATING, NodeHealth.RETIRED):
        draft.say(f"Node {node.node} is already {node.health}.")
        return node
    if automatic and node.health is not NodeHealth.PROBATION and breaker_holds(draft):
        return suspect(draft, node, f"{reason}; not quarantined, since {draft.quarantined} of {len(draft.nodes)} are")
    draft.say(f"Node {node.node} is quarantined: {reason}.")
    return change(draft, node, NodeHealth.QUARANTINED, reason)


def suspect(draft: Draft, node: NodeState, reason: str) -> NodeState:
    if node.health is not NodeHealth.HEALTHY:
        draft.say(f"Node {node.node} stays {node.health}: {reason}.")
        return node
    draft.say(f"Node {node.node} is suspect: {reason}.")
    return change(draft, node, NodeHealth.SUSPECT, reason)


def count_failure(draft: Draft, node: NodeState) -> NodeState:
    """Blame one trainer failure on the node; failures older than the policy's window are forgotten."""
    oldest = draft.now - round(draft.policy.node_failure_window_s * 1e9)
    recent = tuple(at for at in node.failures_ns if at >= oldest)
    return draft.put_node(replace(node, failures_ns=(*recent, draft.now)))


def readmit(draft: Draft, node: NodeState, why: str) -> None:
    if node.health is NodeHealth.PROBATION and node.present:
        draft.say(f"Node {node.node} is on probation already; its probe is sent again.")
    elif not node.present and node.health is not NodeHealth.RETIRED:
        draft.say(f"Node {node.node} can't be readmitted yet: it can't be reached, so it can't be probed.")
        return
    elif node.health not in (NodeHealth.QUARANTINED, NodeHealth.SUSPECT) or node.run:
        draft.say(f"Node {node.node} is {node.health}{' in a gang' if node.run else ''}: there is nothing to readmit.")
        return
    else:
        draft.say(f"Node {node.node} goes on probation: {why}.")
        change(draft, node, NodeHealth.PROBATION, why)
    draft.send(ProbeNode(node=node.node, purpose="probation"))


def end_probation(draft: Draft, node: NodeState, *, ok: bool, findings: tuple[Finding, ...]) -> None:
    if node.health is not NodeHealth.PROBATION:
        draft.say(f"Node {node.node} is {node.health}, not on probation: its probe tells nothing new.")
        return
    if not ok:
        why = findings[0].sentence if findings else "no finding says why"
        take_out(draft, note_findings(draft, node, findings), f"failed its probation ({why})")
        return
    draft.say(f"Node {node.node} passed its probation and is healthy.")
    change(draft, replace(node, findings=(), failures_ns=()), NodeHealth.HEALTHY, "passed its probation")


def retire(draft: Draft, node: NodeState, why: str) -> None:
    if node.health is NodeHealth.RETIRED:
        draft.say(f"Node {node.node} is retired already.")
        return
    draft.say(f"Node {node.node} is retired: {why}.")
    change(draft, node, NodeHealth.RETIRED, why)
