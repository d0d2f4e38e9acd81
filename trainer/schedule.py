"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from trainer.config import OptimizerConfig


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Steps of warm-up of a run of `steps`. A ratio is rounded as OLMo-core rounds its `warmup_fraction`."""
    return config.warmup_steps or round(config.warmup_ratio * steps)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of step 1 to `steps`: linear warm-up from 0 to `lr`, then by `schedule` to `final_lr_ratio * lr` at the last step.

    cosine: half a period. linear: a straight line. wsd: `lr`, then a straight line over the last `decay_steps`. constant:
    `lr`. All as OLMo-core's optim/scheduler.py has them, so its decay of WSD is linear, too.
    """
    warm_up = warmup_steps(config, steps)
    if step <= warm_up:
        return config.lr * step / warm_up
    left = _share_left(config, step - warm_up, max(1, steps - warm_up))
    floor = config.lr * config.final_lr_ratio
    return config.lr if left >= 1 else floor + (config.lr - floor) * left


def _share_left(config: OptimizerConfig, step: int, steps: int) -> float:
    """How much of the way down is still to go at a step after the warm-up: 1 at `lr`, 0 at the floor."""
    match config.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        case "linear":
            return 1 - step / steps
        case "wsd":
            return min(1.0, (steps - step) / config.decay_steps)
    return 1.0
