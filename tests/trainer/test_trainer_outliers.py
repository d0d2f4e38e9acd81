"""The rule for outliers, and that no split into attempts and restores changes a verdict."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.outliers import MIN_STEPS, WINDOW_FIELDS, WINDOW_STEPS, Window, threshold
from trainer.parallel.layout import Layout
from trainer.train.state import COUNTER_FIELDS, TrainState
from trainer.vote import Ballot, Outcome, Verdict, tally

ALONE = Layout(rank=0, replicas=1, shards=1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def level(count: int) -> Window:
    """Losses around 2, norms around 1."""
    window = Window()
    for index in range(count):
        window = window.after(2.0 + 0.1 * (index % 5), 1.0 + 0.1 * (index % 3))
    return window


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=MIN_STEPS, max_size=WINDOW_STEPS), sigma=st.floats(0.1, 10))
def test_the_threshold_is_mean_and_unbiased_deviation(values: list[float], sigma: float) -> None:
    expected = statistics.mean(values) + sigma * statistics.stdev(values)
    assert threshold(values, sigma) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=WINDOW_STEPS), seed=st.randoms())
def test_the_mean_has_the_same_bits_in_any_order(values: list[float], seed: object) -> None:
    """So no build of Python that sums otherwise gives other verdicts."""
    shuffled = list(values)
    seed.shuffle(shuffled)
    assert threshold(shuffled, 6.0) == threshold(values, 6.0)


def test_a_short_window_judges_nobody() -> None:
    assert level(MIN_STEPS - 1).why_outlier(1e9, 1e9, 6.0) == ""
    assert "loss" in level(MIN_STEPS).why_outlier(1e9, 1.0, 6.0)
    assert "gradient norm" in level(MIN_STEPS).why_outlier(2.0, 1e9, 6.0)


def test_just_at_the_threshold_is_no_outlier() -> None:
    window = level(100)
    limit = threshold(window.losses, 6.0)
    assert window.why_outlier(limit, 1.0, 6.0) == ""
    assert window.why_outlier(math.nextafter(limit, math.inf), 1.0, 6.0)


def test_it_is_one_sided_and_can_be_turned_off() -> None:
    assert level(100).why_outlier(-1e9, 0.0, 6.0) == ""
    assert level(100).why_outlier(1e9, 1e9, 0.0) == ""


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (-math.inf, math.nan)])
def test_what_is_not_finite_never_enters(loss: float, norm: float) -> None:
    assert level(3).after(loss, norm) == level(3)
    with pytest.raises(ValueError, match="not finite"):
        Window((loss,), (norm,))


@pytest.mark.parametrize("height", [50.0, 1e9])
def test_a_new_level_is_followed_after_four_skips(height: float) -> None:
    window, skips = level(WINDOW_STEPS), 0
    while window.why_outlier(height, 1.0, 6.0):
        window, skips = window.after(height, 1.0), skips + 1
    assert skips == 4


@given(pairs=st.lists(st.tuples(FLOATS, FLOATS), max_size=WINDOW_STEPS + 9))
def test_a_window_travels_bit_for_bit(pairs: list[tuple[float, float]]) -> None:
    window = Window()
    for loss, norm in pairs:
        window = window.after(loss, norm)
    fields = window.pack()
    assert len(fields) == WINDOW_FIELDS
    assert torch.tensor(fields, dtype=torch.int64).tolist() == fields
    for back in (Window.unpack(fields), Window.from_json(json.loads(json.dumps(window.to_json())))):
        assert back.pack() == fields
    assert len(window.losses) == min(len(pairs), WINDOW_STEPS)


class Run:
    """A world of one that lives through steps: a pure stand-in for StepRunner, Saver and exchange."""

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self._steps = steps
        self.state = empty_state()
        self.verdicts: dict[int, Verdict] = {}

    def go_on(self, to: int) -> None:
        while self.state.step < to:
            verdict = self._verdict(self.state.window)
            self.state.updates += verdict.outcome is Outcome.UPDATE
            self.state.finish(verdict)
            assert str(self.verdicts.setdefault(verdict.step, verdict)) == str(verdict)

    def finish_from_ballots(self) -> None:
        """What a rank does that lost the vote of the next step: the window came with the ballots."""
        sent = Window.unpack(self.state.window.pack())
        verdict = self._verdict(sent)
        self.state.updates += verdict.outcome is Outcome.UPDATE
        self.state.finish(verdict)
        self.verdicts.setdefault(verdict.step, verdict)

    def _verdict(self, window: Window) -> Verdict:
        step = self.state.step + 1
        loss, norm = self._steps[step - 1]
        for tries in (1, 2):
            verdict = tally([Ballot(step, tries, norm * norm, loss)], ALONE, window, 2.0)
            if verdict.finishes:
                return verdict
        raise AssertionError(verdict)


def empty_state() -> TrainState:
    return TrainState(0, 0, 0, {}, {}, {})


def resumed(state: TrainState) -> TrainState:
    """Through a checkpoint."""
    back = empty_state()
    back.step = state.step
    back.set_statistics(json.loads(json.dumps(state.statistics(), allow_nan=False)))
    return back


def received(state: TrainState) -> TrainState:
    """By a newcomer, from a peer."""
    back = empty_state()
    back.set_counters(torch.tensor(state.counters(), dtype=torch.int64).tolist())
    return back


_VALUES = st.one_of(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.sampled_from([40.0, 1e9, math.nan, math.inf]))
_STEPS = st.lists(st.tuples(_VALUES, _VALUES), min_size=30, max_size=60)
_CUTS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["resume", "receive", "finish"])), max_size=6)


@settings(max_examples=60)
@given(tail=_STEPS, cuts=_CUTS)
def test_any_split_into_attempts_gives_the_same_verdicts(
    tail: list[tuple[float, float]], cuts: list[tuple[int, str]]
) -> None:
    steps = [(1.0 + 0.01 * (i % 7), 1.0 + 0.01 * (i % 5)) for i in range(MIN_STEPS - 10)] + tail
    whole, split = Run(steps), Run(steps)
    whole.go_on(len(steps))
    saved = split.state
    for ahead, how in cuts:
        split.go_on(min(split.state.step + ahead, len(steps) - 1))
        if how == "finish":
            split.finish_from_ballots()
        elif how == "receive":
            split.state = received(split.state)
        else:
            split.state, saved = resumed(saved), resumed(split.state)
    split.go_on(len(steps))
    assert [str(v) for v in split.verdicts.values()] == [str(v) for v in whole.verdicts.values()]
    assert split.state == whole.state
    assert whole.state.updates + whole.state.skipped == len(steps)


def test_counters_have_a_fixed_length() -> None:
    state = empty_state()
    state.finish(Verdict(Outcome.OUTLIER, 1, 3.0, 2.0, False))
    state.finish(Verdict(Outcome.SKIP, 2, math.nan, 2.0, False))
    assert (state.skipped, state.skipped_in_row, state.window) == (2, 2, Window((2.0,), (3.0,)))
    assert len(state.counters()) == COUNTER_FIELDS
    state.finish(Verdict(Outcome.UPDATE, 3, 1.0, 2.0, False))
    assert (state.skipped, state.skipped_in_row) == (2, 0)


def test_a_checkpoint_of_before_the_window_can_be_resumed() -> None:
    state = empty_state()
    state.set_statistics({"updates": 5, "skipped": 1})
    assert (state.updates, state.skipped, state.skipped_in_row, state.window) == (5, 1, 0, Window())
