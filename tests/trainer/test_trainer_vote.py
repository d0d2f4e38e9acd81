from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.outliers import Window
from trainer.parallel.layout import Layout
from trainer.vote import BALLOT_FIELDS, Ballot, Outcome, Verdict, tally

GRID = Layout(rank=0, replicas=2, shards=2)


def ballots(norms: tuple[float, ...] = (1.0, 2.0, 1.0, 2.0), **changes: object) -> list[Ballot]:
    """One ballot a rank; a change is a list with a value a rank."""
    rows = [{"step": 5, "tries": 1, "squared_norm": norm, "loss": float(rank)} for rank, norm in enumerate(norms)]
    for name, values in changes.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return [Ballot(**row) for row in rows]


def judge(cast: list[Ballot], layout: Layout, window: Window = Window(), sigma: float = 6.0) -> Verdict:
    return tally(cast, layout, window, sigma)


@given(
    step=st.integers(0, 2**62),
    tries=st.integers(1, 9),
    floats=st.tuples(st.floats(), st.floats()),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_a_ballot_travels_bit_for_bit(step: int, tries: int, floats: tuple, flags: tuple) -> None:
    ballot = Ballot(step, tries, *floats, *flags)
    fields = ballot.pack()
    back = Ballot.unpack(fields)
    assert len(fields) == BALLOT_FIELDS
    assert all(-(2**63) <= field < 2**63 for field in fields)
    assert back.pack() == fields
    assert struct.pack("<d", back.loss) == struct.pack("<d", ballot.loss)


def test_each_shard_counts_once_and_the_loss_is_the_mean() -> None:
    verdict = judge(ballots((9.0, 16.0, 9.0, 16.0)), GRID)
    assert (verdict.outcome, verdict.step, verdict.norm, verdict.loss) == (Outcome.UPDATE, 5, 5.0, 1.5)
    assert verdict.finishes


def test_norm_and_loss_are_summed_in_rank_order() -> None:
    values = (0.1, 1e16, -1e16, 0.3)
    verdict = judge(ballots(loss=list(values)), GRID)
    assert verdict.loss == (((0.1 + 1e16) + -1e16) + 0.3) / 4
    layout = Layout(rank=0, replicas=1, shards=4)
    assert judge(ballots((0.1, 0.2, 0.3, 1e16)), layout).norm == math.sqrt(((0.1 + 0.2) + 0.3) + 1e16)


@given(rank=st.integers(0, 3), value=st.sampled_from([math.nextafter(1.0, 2.0), 0.0, math.inf, math.nan]))
def test_replicas_must_vote_equal_bits(rank: int, value: float) -> None:
    norms = [1.0] * 4
    norms[rank] = value
    verdict = judge(ballots(tuple(norms)), GRID)
    assert verdict.outcome is Outcome.DIVERGED
    assert f"shard {rank % 2}" in verdict.why
    assert f"rank {rank}" in verdict.why
    assert not verdict.finishes


@pytest.mark.parametrize("field", ["step", "tries"])
def test_ranks_must_vote_on_the_same_try_of_the_same_step(field: str) -> None:
    assert judge(ballots(**{field: [2, 2, 2, 3]}), GRID).outcome is Outcome.DIVERGED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_tried_twice_and_then_skipped(value: float) -> None:
    first = judge(ballots(loss=[1.0, value, 1.0, 1.0]), GRID)
    second = judge(ballots(loss=[1.0, value, 1.0, 1.0], tries=[2, 2, 2, 2]), GRID)
    assert (first.outcome, first.finishes) == (Outcome.RETRY, False)
    assert (second.outcome, second.finishes) == (Outcome.SKIP, True)
    assert "loss of rank 1" in first.why


def test_a_gradient_that_is_not_finite_on_all_replicas_is_no_divergence() -> None:
    assert judge(ballots((math.nan, 1.0, math.nan, 1.0)), GRID).outcome is Outcome.RETRY
    assert judge(ballots((math.inf, 1.0, math.inf, 1.0)), GRID).outcome is Outcome.RETRY


def test_a_faulty_rank_stops_the_step_for_all() -> None:
    verdict = judge(ballots((1.0, 0.0, 1.0, 2.0), faulty=[False, True, False, False]), GRID)
    assert (verdict.outcome, verdict.finishes) == (Outcome.FAULT, False)
    assert "rank 1 gave" in verdict.why


def test_one_rank_that_wants_a_checkpoint_is_enough() -> None:
    assert not judge(ballots(), GRID).save
    assert judge(ballots(wants_save=[False, False, True, False]), GRID).save


LEVEL = Window(tuple(2.0 + 0.1 * (i % 5) for i in range(64)), tuple(1.0 + 0.1 * (i % 3) for i in range(64)))


def test_a_step_far_above_the_last_ones_is_skipped_at_its_first_try() -> None:
    spike = judge(ballots((9.0, 16.0, 9.0, 16.0), loss=[2.0] * 4), GRID, LEVEL)
    assert (spike.outcome, spike.finishes) == (Outcome.OUTLIER, True)
    assert "gradient norm 5 is above" in spike.why
    assert "step 5" in spike.why
    assert "loss 9 is above" in judge(ballots((1.0, 0.0, 1.0, 0.0), loss=[9.0] * 4), GRID, LEVEL).why


def test_a_step_far_below_the_last_ones_is_none() -> None:
    assert judge(ballots((0.0, 0.0, 0.0, 0.0), loss=[-50.0] * 4), GRID, LEVEL).outcome is Outcome.UPDATE


def test_sigma_zero_lets_outliers_pass() -> None:
    assert judge(ballots((9e9, 1e9, 9e9, 1e9)), GRID, LEVEL, sigma=0.0).outcome is Outcome.UPDATE


def test_not_finite_and_divergence_come_before_outliers() -> None:
    assert judge(ballots(loss=[1e9, math.nan, 1e9, 1e9]), GRID, LEVEL).outcome is Outcome.RETRY
    assert judge(ballots((9e9, 1.0, 8e9, 1.0)), GRID, LEVEL).outcome is Outcome.DIVERGED


def test_the_reason_says_whose_loss_and_whose_gradient() -> None:
    layout = Layout(rank=0, replicas=1, shards=12)
    why = judge(ballots((math.inf,) * 12, loss=[math.nan] + [1.0] * 11), layout).why
    assert "loss of rank 0," in why
    assert "reduced gradient of ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in why
