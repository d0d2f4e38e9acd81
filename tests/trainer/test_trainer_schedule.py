"""The learning rate of each stage of the Olmo Hybrid recipe, and the shapes in general."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SCHEDULES, OptimizerConfig
from trainer.schedule import learning_rate, warmup_steps

PRETRAIN = OptimizerConfig(lr=3e-4, schedule="cosine", warmup_steps=2000, final_lr_ratio=0.1)
MIDTRAIN = OptimizerConfig(lr=2.0712e-4, schedule="linear", final_lr_ratio=0.0)
LONG_CONTEXT = OptimizerConfig(lr=2.0712e-4, schedule="linear", warmup_steps=200, final_lr_ratio=0.0)
SFT = OptimizerConfig(lr=2.5e-5, schedule="linear", warmup_ratio=0.03, final_lr_ratio=0.0)
WSD = OptimizerConfig(lr=1.0, schedule="wsd", warmup_steps=10, decay_steps=20, final_lr_ratio=0.0)


@pytest.mark.parametrize(
    ("config", "steps", "golden"),
    [
        (
            PRETRAIN,
            1_414_078,
            {1: 1.5e-7, 1000: 1.5e-4, 2000: 3e-4, 708_039: 1.65e-4, 355_019: 2.604595216e-4, 1_414_078: 3e-5},
        ),
        (MIDTRAIN, 23_842, {1: 2.0711131281e-4, 11_921: 1.0356e-4, 23_842: 0.0}),
        (LONG_CONTEXT, 12_000, {100: 1.0356e-4, 200: 2.0712e-4, 6_100: 1.0356e-4, 12_000: 0.0}),
        (SFT, 1_000, {15: 1.25e-5, 30: 2.5e-5, 515: 1.25e-5, 1_000: 0.0}),
        (WSD, 100, {5: 0.5, 10: 1.0, 80: 1.0, 81: 0.95, 90: 0.5, 100: 0.0}),
    ],
)
def test_golden_values(config: OptimizerConfig, steps: int, golden: dict[int, float]) -> None:
    found = {step: learning_rate(config, step, steps) for step in golden}
    assert found == pytest.approx(golden, rel=1e-8, abs=1e-18)


def test_a_linear_schedule_ends_at_exactly_zero() -> None:
    assert learning_rate(MIDTRAIN, 23_842, 23_842) == 0.0


def test_the_cosine_is_the_one_that_earlier_runs_had() -> None:
    """Its bits decide whether an older checkpoint goes on bit-exactly."""
    done = (700 - 100) / (5000 - 100)
    expected = 3e-5 + (3e-4 - 3e-5) * (1 + math.cos(math.pi * done)) / 2
    config = OptimizerConfig(lr=3e-4, warmup_steps=100)
    floor = config.lr * config.final_lr_ratio
    assert learning_rate(config, 700, 5000) == floor + (config.lr - floor) * (1 + math.cos(math.pi * done)) / 2
    assert learning_rate(config, 700, 5000) == pytest.approx(expected)


def test_a_run_may_be_all_warm_up() -> None:
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=8), 8, 8) == 1.0


def test_a_ratio_is_rounded_to_steps() -> None:
    assert warmup_steps(SFT, 1_000) == 30
    assert warmup_steps(SFT, 750) == round(22.5)


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(2, 2_000_000),
    shares=st.tuples(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1)),
    floor=st.floats(0, 1),
)
def test_it_rises_to_the_peak_and_never_again(
    schedule: str, steps: int, shares: tuple[float, float, float], floor: float
) -> None:
    warm_up = int(shares[0] * steps / 2)
    decay = max(1, int(shares[1] * (steps - warm_up))) if schedule == "wsd" else 0
    config = OptimizerConfig(lr=2e-4, schedule=schedule, warmup_steps=warm_up, decay_steps=decay, final_lr_ratio=floor)
    step = 1 + int(shares[2] * (steps - 2))
    before, after = (learning_rate(config, s, steps) for s in (step, step + 1))
    assert 0 <= before <= 2e-4 * (1 + 1e-12)
    assert before < after if step < warm_up else before >= after * (1 - 1e-12)
    last = learning_rate(config, steps, steps)
    assert last == pytest.approx(2e-4 if schedule == "constant" else 2e-4 * floor, rel=1e-12)
