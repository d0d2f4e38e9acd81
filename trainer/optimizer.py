"""AdamW on the local shards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.config import OptimizerConfig
from trainer.train.state import TrainState


def clip_factor(norm: float, clip_norm: float) -> float:
    """What scales the gradients so that their global norm is at most `clip_norm`, as torch's clip_grad_norm_ has it."""
    return min(1.0, clip_norm / (norm + 1e-6))


def squared_norm(gradients: dict[str, Tensor]) -> float:
    """Sum of squares in float64, which is finite exactly when every element is."""
    norms = torch._foreach_norm(list(gradients.values()), 2, dtype=torch.float64)
    return float(torch.stack(norms).square().sum())


class ShardedAdamW:
    """AdamW over a state's shards; it works on the state's own tensors, so the state is always current.

    Element-wise, so shards need no mesh. Weight decay is on everything but the embedding (the Olmo recipe: norms,
    convolutions, A_log and dt_bias included).

    On CUDA one fused kernel reads and writes each element once, the clip included: 32 bytes a parameter, where clipping
    first moves 36. It takes the clip as the scale that a mixed-precision scaler would divide the gradients by.

    torch's functional form: it takes that scale, and doesn't import torch._dynamo, as building a torch.optim.AdamW does.
    """

    def __init__(self, config: OptimizerConfig, state: TrainState, *, fused: bool | None = None) -> None:
        """`fused` None: where the shards are on CUDA."""
        self._config = config
        self._state = state
        embedding = [name for name in state.weights if name.startswith("embedding.")]
        decayed = [name for name in state.weights if not name.startswith("embedding.")]
        self._groups = [(names, decay) for names, decay in ((decayed, config.weight_decay), (embedding, 0.0)) if names]
        device = next(iter(state.weights.values())).device
        self._fused = device.type == "cuda" if fused is None else fused
        # The fused kernel wants its counts beside the shards; float32 counts to 2^24 steps.
        counts = torch.full((len(state.weights),), float(state.updates), device=device if self._fused else "cpu")
        self._counts = dict(zip(state.weights, counts.unbind(), strict=True))

    def update(self, gradients: dict[str, Tensor], norm: float, lr: float) -> None:
        """One update by finite gradients whose global norm is `norm`; clips them in place."""
        factor = clip_factor(norm, self._config.clip_norm)
        divisor = None
        if not self._fused:
            torch._foreach_mul_(list(gradients.values()), factor)
        elif factor < 1:
            divisor = torch.full((), 1 / factor, device=next(iter(gradients.values())).device)
        for names, decay in self._groups:
            self._update_group(names, gradients, decay, lr, divisor)
        self._state.updates += 1

    def _update_group(
        self, names: list[str], gradients: dict[str, Tensor], decay: float, lr: float, divisor: Tensor | None
    ) -> None:
        state, config = self._state, self._config
        adamw(
            [state.weights[name] for name in names],
            [gradients[name] for name in names],
            [state.exp_avg[name] for name in names],
            [state.exp_avg_sq[name] for name in names],
            [],
            [self._counts[name] for name in names],
            foreach=False,
            fused=self._fused,
            grad_scale=divisor,
            amsgrad=False,
            beta1=config.betas[0],
            beta2=config.betas[1],
            lr=lr,
            weight_decay=decay,
            eps=config.eps,
            maximize=False,
        )
