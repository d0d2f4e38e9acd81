"""Norms of the residual stream and of attention's q and k."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.ops import rms_norm
from trainer.model.config import NormKind


class RMSNorm(nn.Module):
    """`weight * x / rms(x)` over the last dimension, in float32 up to and including the weight, then cast back."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


NORMS: dict[NormKind, Callable[[int, float], nn.Module]] = {"rms": RMSNorm}
