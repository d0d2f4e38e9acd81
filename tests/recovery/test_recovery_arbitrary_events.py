"""No sequence of events, however absurd, breaks an invariant or raises."""

from __future__ import annotations

from arbitrary_events import KINDS, Source
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recovery import invariants, views
from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import NodeReady
from orchestrator.recovery.policy import Policy

STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32)), min_size=30, max_size=150)


@given(STEPS, st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_events_keep_the_invariants(steps: list[tuple[str, int]], preflight: bool) -> None:
    state = initial_state(Policy(preflight=preflight))
    for node in ("n0", "n1", "n2"):
        state = decide(state, NodeReady(node=node, gpus=8, boot_id="a"), state.policy).state
    for kind, seed in steps:
        event = Source(seed, state).event(kind)
        decision = decide(state, event, state.policy)
        assert invariants.check_step(state, event, decision) == []
        again = decide(decision.state, event, decision.state.policy)
        assert invariants.check_step(decision.state, event, again) == []
        state = decision.state
    views.state_view(state, state.at_ns)
