"""L2 normalisation of q and k over the head dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.precision import accumulation_dtype

L2_NORM_EPS = 1e-6  # inside the root, as in transformers' OlmoHybrid and fla


def l2_norm(x: Tensor) -> Tensor:
    """`x / sqrt(sum(x^2) + eps)` over the last dimension, computed in at least float32, in the dtype of `x`."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + L2_NORM_EPS)).to(x.dtype)
