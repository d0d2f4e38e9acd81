from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.parallel.layout import Layout
from trainer.train.restore import PeerPlan, Status, plan_restore

GRID = Layout(rank=0, replicas=2, shards=2)
NEWCOMER = Status(False, False, 0, 0, 0)


def applied(step: int) -> Status:
    return Status(False, True, step, step, 0)


def waiting(step: int, voted: bool = False) -> Status:
    """Holds the state before `step`, and the gradients of `step`."""
    return Status(False, True, step - 1, step if voted else step - 1, step)


def test_none_voted_so_all_redo_the_step() -> None:
    plan = plan_restore([waiting(5), waiting(5), NEWCOMER, applied(4)], GRID)
    assert plan == PeerPlan(step=4, ballots_from=0, finishing=frozenset(), transfers=((0, 2),))


def test_one_voted_so_all_finish_the_step() -> None:
    plan = plan_restore([waiting(5), waiting(5, voted=True), waiting(5), NEWCOMER], GRID)
    assert plan == PeerPlan(step=5, ballots_from=1, finishing=frozenset({0, 1, 2}), transfers=((1, 3),))


def test_a_voter_may_have_applied_it_already() -> None:
    plan = plan_restore([applied(5), waiting(5), waiting(5), NEWCOMER], GRID)
    assert plan == PeerPlan(step=5, ballots_from=0, finishing=frozenset({1, 2}), transfers=((1, 3),))


def test_a_rank_left_behind_without_gradients_gets_the_shard() -> None:
    plan = plan_restore([applied(5), applied(5), applied(3), applied(5)], GRID)
    assert plan is not None
    assert plan.transfers == ((0, 2),)
    assert plan.receivers == {2}


def test_a_state_from_a_checkpoint_has_no_ballots() -> None:
    restored = Status(False, True, 3, 0, 0)
    plan = plan_restore([restored, restored, NEWCOMER, restored], GRID)
    assert plan == PeerPlan(step=3, ballots_from=None, finishing=frozenset(), transfers=((0, 2),))


def test_a_shard_without_a_holder_needs_the_checkpoint() -> None:
    assert plan_restore([applied(5), NEWCOMER, applied(5), NEWCOMER], GRID) is None
    assert plan_restore([NEWCOMER] * 4, GRID) is None
    assert plan_restore([applied(5), applied(4), applied(5), applied(4)], GRID) is None


def test_the_supervisor_may_order_the_checkpoint() -> None:
    ordered = Status(True, True, 5, 5, 0)
    assert plan_restore([ordered] * 4, GRID) is None


def test_gradients_of_another_step_finish_nothing() -> None:
    stale = Status(False, True, 4, 4, 4)
    plan = plan_restore([applied(5), applied(5), stale, applied(5)], GRID)
    assert plan is not None
    assert plan.finishing == frozenset()
    assert plan.receivers == {2}


_STATUSES = st.builds(
    Status,
    wants_checkpoint=st.just(False),
    holds_state=st.booleans(),
    step=st.integers(0, 3),
    ballots_step=st.integers(0, 3),
    kept_step=st.integers(0, 3),
)


@given(statuses=st.lists(_STATUSES, min_size=6, max_size=6), grid=st.sampled_from([(2, 3), (3, 2), (6, 1), (1, 6)]))
def test_a_plan_brings_every_rank_to_its_step(statuses: list[Status], grid: tuple[int, int]) -> None:
    layout = Layout(0, *grid)
    plan = plan_restore(statuses, layout)
    if plan is None:
        return
    there = {rank for rank, s in enumerate(statuses) if s.holds_state and s.step == plan.step} | plan.finishing
    for giver, receiver in plan.transfers:
        assert giver in there
        assert giver % layout.shards == receiver % layout.shards
    assert there | plan.receivers == set(range(6))
    assert not there & plan.receivers
    for rank in plan.finishing:
        assert statuses[rank].holds_state
        assert (statuses[rank].step, statuses[rank].kept_step) == (plan.step - 1, plan.step)
    assert not plan.finishing or statuses[plan.ballots_from].ballots_step == plan.step


@given(status=_STATUSES)
def test_a_status_travels(status: Status) -> None:
    assert Status.unpack(status.pack()) == status
