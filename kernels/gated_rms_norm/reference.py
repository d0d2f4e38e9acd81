"""RMSNorm of the delta rule's output, gated by SiLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.precision import accumulation_dtype


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / rms(x) * silu(gate)` over the last dimension.

    The order of casts is that of transformers' OlmoHybridRMSNormGated: statistics in float32, back to the dtype of x
    before the weight, the gate's SiLU in float32 again. In bfloat16 any other order gives other bits.

    Args:
        x, gate: [..., V].
        weight: [V].
        eps: added to the mean square.

    Returns:
        [..., V] in the dtype of x.
    """
    dtype = accumulation_dtype(x.dtype)
    wide = x.to(dtype)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype) * F.silu(gate.to(dtype))).to(x.dtype)
