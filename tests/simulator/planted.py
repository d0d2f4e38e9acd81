"""Versions of `decide`, each with one bug that a simulation must catch."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery.commands import JoinGang, StopWorkers
from orchestrator.recovery.decide import decide
from orchestrator.recovery.events import NodeFindings, RunFinished, StepsCounted, WorkerExited
from orchestrator.recovery.state import Decision, NodeHealth, RunPhase


def _ignored(state, event) -> Decision:
    return Decision(state=replace(state, at_ns=event.at_ns), reason="ignored")


def stale_attempt(state, event, policy) -> Decision:
    """Gangs of later attempts are asked to join the attempt before."""
    decision = decide(state, event, policy)
    commands = tuple(
        replace(c, attempt=c.attempt - 1) if isinstance(c, JoinGang) and c.attempt > 1 else c for c in decision.commands
    )
    return replace(decision, commands=commands)


def spare_not_taken(state, event, policy) -> Decision:
    """A node placed in a gang is still listed as free."""
    decision = decide(state, event, policy)
    after = decision.state
    for run in after.runs.values():
        for name in run.placement[:1]:
            if name:
                after = replace(after, nodes=after.nodes.set(name, replace(after.nodes[name], run="")))
    return replace(decision, state=after)


def quarantined_kept(state, event, policy) -> Decision:
    """A node in a gang is quarantined by its findings, and the gang goes on with it."""
    decision = decide(state, event, policy)
    if not isinstance(event, NodeFindings) or not state.nodes.get(event.node, None) or not state.nodes[event.node].run:
        return decision
    if decision.state.nodes[event.node].health is not NodeHealth.QUARANTINED:
        return decision
    node = replace(state.nodes[event.node], health=NodeHealth.QUARANTINED)
    nodes = state.nodes.set(event.node, node)
    after = replace(state, at_ns=event.at_ns, nodes=nodes, quarantined=state.quarantined + 1)
    return Decision(state=after, reason="kept")


def second_lost(state, event, policy) -> Decision:
    """One second is not in the ledger."""
    decision = decide(state, event, policy)
    run = decision.state.runs.get(getattr(event, "run", ""))
    if not isinstance(event, StepsCounted) or run is None or "training" not in run.ledger.accounts:
        return decision
    accounts = run.ledger.accounts.set("training", run.ledger.accounts["training"] - 1_000_000_000)
    run = replace(run, ledger=replace(run.ledger, accounts=accounts))
    return replace(decision, state=replace(decision.state, runs=decision.state.runs.set(run.run, run)))


def never_ends(state, event, policy) -> Decision:
    """The ends of trainers that are done are not noticed."""
    if isinstance(event, RunFinished) or (isinstance(event, WorkerExited) and event.exit_code == 0):
        return _ignored(state, event)
    return decide(state, event, policy)


def ends_early(state, event, policy) -> Decision:
    """The first rank that is done ends the run."""
    if isinstance(event, WorkerExited) and event.completed:
        step = state.runs[event.run].step if event.run in state.runs else 0
        event = RunFinished(at_ns=event.at_ns, run=event.run, attempt=event.attempt, step=step)
    return decide(state, event, policy)


def trainers_left_behind(state, event, policy) -> Decision:
    """Nobody is ever stopped."""
    decision = decide(state, event, policy)
    return replace(decision, commands=tuple(c for c in decision.commands if not isinstance(c, StopWorkers)))


def without_deadlines(state, event, policy) -> Decision:
    """What does not answer is waited for without end."""
    decision = decide(state, event, policy)
    runs = decision.state.runs
    for name, run in runs.items():
        if run.deadline_ns:
            runs = runs.set(name, replace(run, deadline_ns=0))
    return replace(decision, state=replace(decision.state, runs=runs, deadlines=None))


def queue_forgotten(state, event, policy) -> Decision:
    """A run that has to wait is never looked at again."""
    decision = decide(state, event, policy)
    queue = tuple(name for name in decision.state.queue if decision.state.runs[name].phase is not RunPhase.PENDING)
    return replace(decision, state=replace(decision.state, queue=queue))


def make_forgetful():
    """Decides by what it remembers outside of the state: a replay decides otherwise."""
    seen = [0]

    def forgetful(state, event, policy) -> Decision:
        seen[0] += 1
        decision = decide(state, event, policy)
        if seen[0] % 40 == 0:
            return replace(decision, commands=())
        return decision

    return forgetful
