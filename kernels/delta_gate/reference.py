"""The log decay of the gated delta rule from its projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.precision import accumulation_dtype


def delta_gate(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """`-exp(A_log) * softplus(x + dt_bias)`: Mamba-2's step size and decay (arXiv:2405.21060) as a log gate <= 0.

    Args:
        x: [B, T, H], the projection of the tokens.
        A_log, dt_bias: [H].

    Returns:
        [B, T, H] in float32 also where the model is bfloat16; float64 for float64.
    """
    dtype = accumulation_dtype(x.dtype)
    return -A_log.to(dtype).exp() * F.softplus(x.to(dtype) + dt_bias)
