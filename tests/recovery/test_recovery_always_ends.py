"""On a cluster that answers, every run ends, and the events of its life give the same state again."""

from __future__ import annotations

import pytest
from fair_cluster import FairCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import RunPlan
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import RunPhase

PLANS = (
    RunPlan(nodes=4, replicas=2, shards=2),
    RunPlan(nodes=2, ranks_per_node=2, replicas=2, shards=2),
    RunPlan(nodes=3, replicas=1, shards=3, speaks_protocol=False),
    RunPlan(nodes=1, replicas=1, shards=1),
)


@given(st.integers(0, 2**32), st.sampled_from(PLANS), st.integers(0, 12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_run_ends_after_any_faults(seed: int, plan: RunPlan, faults: int, preflight: bool) -> None:
    policy = Policy(preflight=preflight, max_recoveries_without_progress=100, max_quarantined_share=1.0)
    cluster = FairCluster(seed, plan, nodes=5, faults=faults, policy=policy)
    cluster.play()
    assert cluster.state.runs["run"].phase is RunPhase.COMPLETED
    assert next(iter(cluster.state.holding), None) is None


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_budgets_end_what_goes_on_failing(budget: int) -> None:
    """The trainers of this cluster never leave by themselves: each first step is followed by a death."""
    plan = RunPlan(nodes=1, replicas=1, shards=1, max_recoveries=budget)
    cluster = FairCluster(0, plan, nodes=2, faults=0, policy=Policy(preflight=False))

    def die() -> None:
        run = cluster.state.runs["run"]
        if run.phase is not RunPhase.RUNNING:
            return
        (node,) = run.placement
        cluster.trainers[node].clear()
        cluster.inbox.append(cluster.exited(node, 0, run.attempt))

    cluster.make_progress = die  # type: ignore[method-assign]
    cluster.play()
    run = cluster.state.runs["run"]
    assert run.phase is RunPhase.FAILED
    assert run.recoveries == budget
    assert "recoveries" in run.reason


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_replaying_the_events_gives_the_same_state_and_reasons(seed: int) -> None:
    cluster = FairCluster(seed, PLANS[0], nodes=5, faults=6, policy=Policy(max_quarantined_share=1.0))
    cluster.play()
    state = initial_state(Policy(max_quarantined_share=1.0))
    for event in cluster.history:
        state = decide(state, event, state.policy).state
    assert state == cluster.state
