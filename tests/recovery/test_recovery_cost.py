"""An event costs the same with ten nodes and with thousands: counted in calls, not in seconds."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from orchestrator.recovery import events as ev
from orchestrator.recovery.decide import decide, initial_state, next_deadline
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import State

OF_RUN = {"run": "a", "attempt": 1}


def cluster(spares: int) -> State:
    """Run `a` trains on two nodes, with spares and as many nodes that are out."""
    state = initial_state(Policy(preflight=False))
    nodes = [f"n{i:05d}" for i in range(2 + 2 * spares)]
    events: list[ev.Event] = [ev.NodeReady(node=node, gpus=8, boot_id="a") for node in nodes]
    events += [ev.NodeQuarantined(node=node, who="ada") for node in nodes[2 + spares :]]
    events += [
        ev.RunSubmitted(run="a", plan=ev.RunPlan(nodes=2, replicas=2, shards=1)),
        ev.StoreReady(node=nodes[0], host="h", port=1, **OF_RUN),
        ev.FirstStep(step=1, **OF_RUN),
    ]
    for event in events:
        state = decide(state, event, state.policy).state
    assert state.runs["a"].phase == "running"
    return state


def calls_of(action: partial) -> int:
    count = 0

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


FEW, MANY = cluster(4), cluster(1500)


@pytest.mark.parametrize(
    "event",
    [
        ev.StepsCounted(step=9, **OF_RUN),
        ev.WorkerExited(rank=1, node="n00001", signal=9, **OF_RUN),
        ev.NodeLost(node="n00001", evidence="no beat"),
        ev.NodeReady(node="n00001", gpus=8, boot_id="b"),
        ev.NodeReady(node="n99999", gpus=8, boot_id="a"),
        ev.NodeQuarantined(node="n00003", who="ada"),
        ev.DeadlinePassed(),
    ],
    ids=lambda event: type(event).__name__,
)
def test_the_number_of_nodes_does_not_matter(event: ev.Event) -> None:
    assert calls_of(partial(decide, FEW, event, FEW.policy)) == calls_of(partial(decide, MANY, event, MANY.policy))
    assert calls_of(partial(next_deadline, FEW)) == calls_of(partial(next_deadline, MANY))
