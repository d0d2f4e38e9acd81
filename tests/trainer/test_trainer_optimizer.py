from __future__ import annotations

import math

import pytest
import torch

from trainer.config import OptimizerConfig
from trainer.optimizer import ShardedAdamW, clip_factor, learning_rate, squared_norm
from trainer.train.state import TrainState

NAMES = ("embedding.weight", "blocks.0.op.weight", "head.weight")


def fresh_state(seed: int = 0) -> TrainState:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(4, 3, generator=generator) for name in NAMES}
    zeros = [{name: torch.zeros(4, 3) for name in NAMES} for _ in range(2)]
    return TrainState(0, 0, 0, weights, *zeros)


def some_gradients(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, generator=generator) for name in NAMES}


def test_warm_up_is_linear_and_the_cosine_ends_at_the_last_step() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, final_lr_ratio=0.1)
    rates = [learning_rate(config, step, 24) for step in range(1, 25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[13] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_run_may_be_all_warm_up() -> None:
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=8), 8, 8) == 1.0


def test_clipping_is_torchs() -> None:
    gradients = some_gradients(1)
    parameters = [torch.nn.Parameter(torch.zeros(4, 3)) for _ in NAMES]
    for parameter, name in zip(parameters, NAMES, strict=True):
        parameter.grad = gradients[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    assert math.sqrt(squared_norm(gradients)) == pytest.approx(norm, rel=1e-6)
    for parameter, name in zip(parameters, NAMES, strict=True):
        torch.testing.assert_close(gradients[name] * clip_factor(norm, 1.0), parameter.grad)
    assert clip_factor(0.5, 1.0) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_norm_is_finite_exactly_when_all_elements_are(value: float) -> None:
    gradients = {"a": torch.full((3,), 3e38), "b": torch.zeros(0, 4)}
    assert math.isfinite(squared_norm(gradients))
    gradients["a"][1] = value
    assert not math.isfinite(squared_norm(gradients))


def test_updates_are_those_of_adamw_with_no_decay_on_the_embedding() -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, clip_norm=1e9)
    state = fresh_state()
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in state.weights.items()}
    whole = torch.optim.AdamW(
        [
            {"params": [p for n, p in parameters.items() if n != "embedding.weight"], "weight_decay": 0.5},
            {"params": [parameters["embedding.weight"]], "weight_decay": 0.0},
        ],
        lr=0.1,
        betas=config.betas,
        eps=config.eps,
    )
    sharded = ShardedAdamW(config, state)
    for step in range(3):
        for name, gradient in some_gradients(step).items():
            parameters[name].grad = gradient
        whole.step()
        sharded.update(some_gradients(step), norm=1.0, lr=0.1)
    assert all(torch.equal(state.weights[name], parameters[name]) for name in NAMES)
    assert state.updates == 3


def test_an_optimizer_made_anew_goes_on_as_if_nothing_had_been() -> None:
    config = OptimizerConfig(lr=0.1)
    through, broken = fresh_state(), fresh_state()
    steady = ShardedAdamW(config, through)
    for step in range(4):
        steady.update(some_gradients(step), norm=3.0, lr=0.1)
        ShardedAdamW(config, broken).update(some_gradients(step), norm=3.0, lr=0.1)
    assert through.digest() == broken.digest()
