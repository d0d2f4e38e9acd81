"""The transition tables are whole and obeyed."""

from __future__ import annotations

import pytest

from orchestrator.recovery import incident as incidents
from orchestrator.recovery import ledger, node_machine, run_machine
from orchestrator.recovery.draft import OUT, TERMINAL, Draft
from orchestrator.recovery.events import RunPlan
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import (
    Cause,
    NodeHealth,
    NodeState,
    RecoveryPhase,
    RunPhase,
    RunState,
    State,
    Trouble,
)


def draft() -> Draft:
    return Draft(State(), Policy(), 1000)


def a_run(phase: RunPhase, stage: RecoveryPhase | None = None) -> RunState:
    plan = RunPlan(nodes=1, replicas=1, shards=1)
    return RunState(run="a", plan=plan, phase=phase, stage=stage, ledger=ledger.open_ledger(0, Cause.START))


def reachable(table: dict, start: object) -> set:
    found, frontier = set(), {start}
    while frontier:
        found |= frontier
        frontier = {follower for state in frontier for follower in table[state]} - found
    return found


def test_every_phase_has_a_row_and_can_be_reached() -> None:
    assert reachable(run_machine.PHASES, RunPhase.PENDING) == set(RunPhase) == set(run_machine.PHASES)
    assert reachable(node_machine.TRANSITIONS, NodeHealth.HEALTHY) == set(NodeHealth) == set(node_machine.TRANSITIONS)
    stages = {None, *RecoveryPhase} - {RecoveryPhase.DETECT, RecoveryPhase.DECIDE}
    assert reachable(run_machine.STAGES, None) == stages == set(run_machine.STAGES)


def test_only_the_ends_are_ends() -> None:
    assert {phase for phase, followers in run_machine.PHASES.items() if not followers} == TERMINAL
    assert [health for health, followers in node_machine.TRANSITIONS.items() if not followers] == [NodeHealth.RETIRED]


@pytest.mark.parametrize("phase", RunPhase)
def test_a_run_moves_as_the_table_says_or_not_at_all(phase: RunPhase) -> None:
    for target in RunPhase:
        if target in run_machine.PHASES[phase]:
            assert run_machine.move(draft(), a_run(phase), target, "why").phase is target
        else:
            with pytest.raises(node_machine.IllegalTransitionError):
                run_machine.move(draft(), a_run(phase), target, "why")


@pytest.mark.parametrize("stage", run_machine.STAGES, ids=str)
def test_a_stage_follows_as_the_table_says_or_not_at_all(stage: RecoveryPhase | None) -> None:
    for target in set(run_machine.STAGES) - {None}:
        if target in run_machine.STAGES[stage]:
            assert run_machine.enter(draft(), a_run(RunPhase.STARTING, stage), target, "why").stage is target
        else:
            with pytest.raises(node_machine.IllegalTransitionError):
                run_machine.enter(draft(), a_run(RunPhase.STARTING, stage), target, "why")


@pytest.mark.parametrize("health", NodeHealth)
def test_a_node_changes_as_the_table_says_or_not_at_all(health: NodeHealth) -> None:
    for target in NodeHealth:
        node = NodeState(node="n", health=health)
        if target in node_machine.TRANSITIONS[health]:
            assert node_machine.change(draft(), node, target, "why").health is target
        else:
            with pytest.raises(node_machine.IllegalTransitionError):
                node_machine.change(draft(), node, target, "why")


@pytest.mark.parametrize("health", sorted(OUT & node_machine.TRANSITIONS[NodeHealth.SUSPECT]))
def test_a_node_must_leave_its_gang_before_it_goes_out(health: NodeHealth) -> None:
    with pytest.raises(node_machine.IllegalTransitionError):
        node_machine.change(draft(), NodeState(node="n", health=NodeHealth.SUSPECT, run="a"), health, "why")


def an_incident(cause: str, node: str) -> incidents.Incident:
    return incidents.open_incident(1, "a", Trouble(cause=cause, node=node), 7, 10, 20)


@pytest.mark.parametrize(
    ("first", "second", "named", "also"),
    [
        (("unknown", ""), ("worker_exited", "n1"), ("worker_exited", "n1"), ()),
        (("worker_exited", "n1"), ("unknown", ""), ("worker_exited", "n1"), ()),
        (("worker_exited", "n1"), ("node_lost", "n1"), ("node_lost", "n1"), ()),
        (("node_lost", "n1"), ("xid_79", "n1"), ("xid_79", "n1"), ()),
        (("node_lost", "n1"), ("worker_exited", "n1"), ("node_lost", "n1"), ()),
        (("worker_hung", ""), ("worker_hung", "n2"), ("worker_hung", "n2"), ()),
        (("worker_exited", "n1"), ("worker_exited", "n2"), ("worker_exited", "n1"), ("worker_exited n2",)),
        (("worker_fault", "n1"), ("node_lost", "n2"), ("node_lost", "n2"), ("worker_fault n1",)),
        (("worker_exited", "n1"), ("form_deadline", ""), ("worker_exited", "n1"), ("form_deadline",)),
    ],
)
def test_the_cause_nearest_to_the_root_names_the_incident(first, second, named, also) -> None:
    joined = incidents.join(an_incident(*first), Trouble(cause=second[0], node=second[1]))
    assert ((joined.cause, joined.node), joined.also) == (named, also)
    again = incidents.join(joined, Trouble(cause=second[0], node=second[1]))
    assert again == joined


def test_parts_of_an_incident_keep_their_order() -> None:
    incident = incidents.mark(an_incident("node_lost", "n1"), Cause.ISOLATE, 30)
    with pytest.raises(ValueError, match="restore cannot follow isolate"):
        incidents.mark(incident, Cause.RESTORE, 40)


def test_a_part_that_is_entered_again_adds_up() -> None:
    incident = an_incident("node_lost", "n1")
    parts = [Cause.ISOLATE, Cause.PLACE, Cause.FORM, Cause.ISOLATE, Cause.PLACE, Cause.FORM, Cause.RESTORE]
    for count, part in enumerate(parts):
        incident = incidents.mark(incident, part, 30 + 10 * count)
    closed = incidents.close(incident, 200, "recovered")
    assert closed.phases_ns()["isolate"] == closed.phases_ns()["form"] == 20
    assert sum(closed.phases_ns().values()) == incidents.recovery_ns(closed) == 190
