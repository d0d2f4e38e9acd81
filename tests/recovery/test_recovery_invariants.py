"""The checks find what is planted: a check that can't fail would protect nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from immutables import Map
from msgspec.structs import replace
from scenario import play

from orchestrator.recovery import invariants
from orchestrator.recovery.commands import JoinGang, StartStore, StopWorkers
from orchestrator.recovery.events import DeadlinePassed
from orchestrator.recovery.state import Cause, Decision, Hold, NodeHealth, RecoveryPhase, RunState, State

SCENARIOS = Path(__file__).parent / "scenarios"


def state_of(name: str) -> State:
    return play((SCENARIOS / f"{name}.txt").read_text())[2]


RUNNING = state_of("xid_with_spare")
RECOVERING = state_of("daemon_restart")
DONE = state_of("finish")


def with_run(state: State, **changes: object) -> State:
    return replace(state, runs=state.runs.set("demo", replace(state.runs["demo"], **changes)))


def with_node(state: State, name: str, **changes: object) -> State:
    return replace(state, nodes=state.nodes.set(name, replace(state.nodes[name], **changes)))


def with_ledger(run: RunState, **changes: object) -> dict[str, object]:
    return {"ledger": replace(run.ledger, **changes)}


DEMO = RUNNING.runs["demo"]
INCIDENT = DEMO.incidents[0]

STATES: dict[str, Callable[[], State]] = {
    "free nodes": lambda: replace(RUNNING, free=Map({"n0": None})),
    "not the number of nodes that are out": lambda: replace(RUNNING, quarantined=3),
    "count of held nodes": lambda: replace(RUNNING, holding=Map()),
    "thinks that it is in the gang": lambda: with_node(RUNNING, "n2", run="demo"),
    "is quarantined, present: True, and in the gang": lambda: with_node(RUNNING, "n0", health=NodeHealth.QUARANTINED),
    "changed in the future": lambda: with_node(RUNNING, "n0", since_ns=RUNNING.at_ns + 1),
    "not the set of runs that wait": lambda: replace(RUNNING, queue=("demo",)),
    "ledger does not sum": lambda: with_run(RUNNING, **with_ledger(DEMO, since_ns=DEMO.ledger.since_ns - 1)),
    "account of its ledger is negative": lambda: with_run(RUNNING, **with_ledger(DEMO, accounts=Map({"start": -1}))),
    "charged into the future": lambda: with_run(RUNNING, **with_ledger(DEMO, since_ns=RUNNING.at_ns + 1)),
    "its ledger is closed": lambda: with_run(RUNNING, **with_ledger(DEMO, closed=True)),
    "twice in its gang": lambda: with_run(RUNNING, placement=("n0", "n0", "n1", "n3")),
    "belongs to nobody": lambda: with_run(RUNNING, placement=("n0", "n1", "n9", "n3")),
    "wrong length": lambda: with_run(RUNNING, placement=("n0", "n1", "n4", "n3", "")),
    "holds nodes": lambda: with_run(DONE, placement=("n0", "n1")),
    "with 3 of 4 nodes": lambda: with_run(RUNNING, placement=("n0", "", "n4", "n3")),
    "it is running in stage form": lambda: with_run(RUNNING, stage=RecoveryPhase.FORM),
    "waits for ranks outside": lambda: with_run(RUNNING, waiting=frozenset({1})),
    "waits for nobody": lambda: with_run(RECOVERING, waiting=frozenset()),
    "probes": lambda: with_run(RUNNING, probing=frozenset({"n0"})),
    "holds for capacity in stage": lambda: with_run(RECOVERING, hold=Hold.CAPACITY),
    "without an attempt": lambda: with_run(RUNNING, attempt=0),
    "more than its recoveries": lambda: with_run(RUNNING, recoveries=101),
    "more recoveries without progress": lambda: with_run(RUNNING, barren_recoveries=2),
    "misses ranks": lambda: with_run(RECOVERING, missing=frozenset({0})),
    "with deadline 0": lambda: with_run(RECOVERING, deadline_ns=0),
    "not in the heap": lambda: replace(RECOVERING, deadlines=None),
    "an incident is open": lambda: with_run(RUNNING, incident=INCIDENT),
    "differ in detect": lambda: with_run(RUNNING, **with_ledger(DEMO, accounts=Map({Cause.DETECT.value: 5}))),
    "does not begin with its fault": lambda: with_run(RUNNING, incidents=(replace(INCIDENT, fault_at_ns=0),)),
    "form at": lambda: with_run(RUNNING, incidents=(replace(INCIDENT, marks=(INCIDENT.marks[0], INCIDENT.marks[4])),)),
    "with outcome ''": lambda: with_run(RUNNING, incidents=(replace(INCIDENT, outcome=""),)),
}


@pytest.mark.parametrize("expected", STATES)
def test_a_planted_fault_in_a_state_is_found(expected: str) -> None:
    assert any(expected in violation for violation in invariants.check(STATES[expected]()))


JOIN = JoinGang(
    node="n0", run="demo", attempt=1, ranks=(0,), world_size=4, replicas=2, shards=2, store_host="h", store_port=1,
    restore="peers",
)  # fmt: skip

DECISIONS: dict[str, tuple[State, Decision]] = {
    "no reason": (RUNNING, Decision(state=RUNNING, reason=" ")),
    "went back": (RUNNING, Decision(state=replace(RUNNING, epoch=0), reason="r")),
    "it is forgotten": (RUNNING, Decision(state=replace(RUNNING, runs=Map()), reason="r")),
    "it was completed and changed": (DONE, Decision(state=with_run(DONE, reason="other"), reason="r")),
    "step or number of recoveries": (RUNNING, Decision(state=with_run(RUNNING, attempt=1), reason="r")),
    "its ledger went back": (RUNNING, Decision(state=with_run(RUNNING, ledger=DONE.runs["demo"].ledger), reason="r")),
    "more than the breaker allows": (RUNNING, Decision(state=replace(RUNNING, quarantined=4), reason="r")),
    "JoinGang for attempt 1": (RUNNING, Decision(state=RUNNING, commands=(JOIN,), reason="r")),
    "unknown run x": (
        RUNNING,
        Decision(state=RUNNING, commands=(StartStore(node="n0", run="x", attempt=1),), reason="r"),
    ),
    "not in the gang of demo": (
        RUNNING,
        Decision(state=RUNNING, commands=(StartStore(node="n2", run="demo", attempt=2),), reason="r"),
    ),
}


@pytest.mark.parametrize("expected", DECISIONS)
def test_a_planted_fault_in_a_decision_is_found(expected: str) -> None:
    before, decision = DECISIONS[expected]
    assert any(expected in violation for violation in invariants.check_step(before, DeadlinePassed(), decision))


def test_leftovers_of_an_unknown_run_may_be_ended() -> None:
    stop = StopWorkers(node="n0", run="x", attempt=1, grace_s=1.0, why="leftover")
    assert invariants.check_step(RUNNING, DeadlinePassed(), Decision(state=RUNNING, commands=(stop,), reason="r")) == []
