"""AdamW on the local shards, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.config import OptimizerConfig
from trainer.train.state import TrainState


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of step 1 to `steps`: linear warm-up to `lr`, then a cosine down to `final_lr_ratio * lr` at the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    floor = config.lr * config.final_lr_ratio
    return floor + (config.lr - floor) * (1 + math.cos(math.pi * done)) / 2


def clip_factor(norm: float, clip_norm: float) -> float:
    """What scales the gradients so that their global norm is at most `clip_norm`, as torch's clip_grad_norm_ has it."""
    return min(1.0, clip_norm / (norm + 1e-6))


def squared_norm(gradients: dict[str, Tensor]) -> float:
    """Sum of squares in float64, which is finite exactly when every element is."""
    norms = torch._foreach_norm(list(gradients.values()), 2, dtype=torch.float64)
    return float(torch.stack(norms).square().sum())


class ShardedAdamW:
    """torch.optim.AdamW over a state's shards; it works on the state's own tensors, so the state is always current.

    Element-wise, so shards need no mesh. Weight decay is on everything but the embedding (the Olmo recipe: norms,
    convolutions, A_log and dt_bias included).
    """

    def __init__(self, config: OptimizerConfig, state: TrainState) -> None:
        self._config = config
        self._state = state
        decayed = [w for n, w in state.weights.items() if not n.startswith("embedding.")]
        exempt = [w for n, w in state.weights.items() if n.startswith("embedding.")]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=tuple(config.betas), eps=config.eps
        )
        for name, weight in state.weights.items():
            self._adamw.state[weight] = {
                "step": torch.tensor(float(state.updates)),
                "exp_avg": state.exp_avg[name],
                "exp_avg_sq": state.exp_avg_sq[name],
            }

    def update(self, gradients: dict[str, Tensor], norm: float, lr: float) -> None:
        """One update by finite gradients whose global norm is `norm`; clips them in place."""
        factor = clip_factor(norm, self._config.clip_norm)
        torch._foreach_mul_(list(gradients.values()), factor)
        for name, weight in self._state.weights.items():
            weight.grad = gradients[name]
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for weight in self._state.weights.values():
            weight.grad = None
        self._state.updates += 1
