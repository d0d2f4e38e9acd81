from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from trainer.config import OptimizerConfig
from trainer.optimizer import ShardedAdamW, clip_factor, squared_norm
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
    sharded = ShardedAdamW(config, state, fused=False)
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


@pytest.mark.parametrize("norm", [0.5, 3.0, 1e6])
def test_the_fused_kernel_clips_and_updates_as_the_plain_one(norm: float) -> None:
    """CUDA's default, tried in its CPU form: rounding alone tells them apart, also over an optimizer made anew."""
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    plain, fused = fresh_state(), fresh_state()
    for step in range(4):
        gradients = some_gradients(step)
        scaled = {name: g * (norm / math.sqrt(squared_norm(gradients))) for name, g in gradients.items()}
        ShardedAdamW(config, plain, fused=False).update({n: g.clone() for n, g in scaled.items()}, norm, 0.1)
        ShardedAdamW(config, fused, fused=True).update(scaled, norm, 0.1)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(fused.tensors()[name], tensor, rtol=2e-6, atol=1e-7)
    assert fused.updates == plain.updates == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("norm", [0.5, 3.0])
def test_on_a_gpu_updates_are_those_of_the_host_and_repeat_bit_for_bit(norm: float) -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    states = [fresh_state() for _ in range(3)]
    for state in states[1:]:
        for slot in (state.weights, state.exp_avg, state.exp_avg_sq):
            slot.update({name: tensor.cuda() for name, tensor in slot.items()})
            slot["blocks.0.empty"] = torch.zeros(0, 3, device="cuda")
    for state in states:
        for step in range(3):
            gradients = {n: g.to(state.weights[n].device) for n, g in some_gradients(step).items()}
            gradients |= {n: torch.zeros_like(w) for n, w in state.weights.items() if n not in gradients}
            ShardedAdamW(config, state).update(gradients, norm, 0.1)
    assert states[1].digest() == states[2].digest()
    for name, tensor in states[0].tensors().items():
        torch.testing.assert_close(states[1].tensors()[name].cpu(), tensor, rtol=2e-6, atol=1e-7)


def test_no_update_imports_the_compiler() -> None:
    """torch._dynamo takes as long to import as a small run's first steps."""
    code = """
import sys, torch
from trainer.config import OptimizerConfig
from trainer.optimizer import ShardedAdamW
from trainer.train.state import TrainState
state = TrainState(0, 0, 0, *({"embedding.w": torch.ones(2), "w": torch.ones(2)} for _ in range(3)))
ShardedAdamW(OptimizerConfig(), state).update({"embedding.w": torch.ones(2), "w": torch.ones(2)}, 2.0, 0.1)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
