"""RMSNorm of the residual stream and of attention's q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.precision import accumulation_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / rms(x)` over the last dimension (Zhang and Sennrich, arXiv:1910.07467).

    In float32 up to and including the weight, then cast back, as transformers' OlmoHybridRMSNorm does.

    Args:
        x: [..., D].
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., D] in the dtype of x.
    """
    wide = x.to(accumulation_dtype(x.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * normed).to(x.dtype)
