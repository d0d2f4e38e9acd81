"""One token of the short convolution with its last inputs carried along, for decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.precision import accumulation_dtype


def short_convolution_step(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What `reference.short_convolution` does to one token.

    Args:
        x: [B, C].
        weight: [C, W].
        state: [B, W - 1, C], the inputs before, the newest last; zero where there were none.

    Returns:
        y [B, C] in the dtype of x, and the next state.

    Raises:
        ValueError: a shape does not fit.
    """
    channels, width = weight.shape
    if x.ndim != 2 or x.shape[1] != channels or state.shape != (x.shape[0], width - 1, channels):
        raise ValueError(
            f"x must be [B, C], weight [C, W] and state [B, W - 1, C], got {tuple(x.shape)}, {tuple(weight.shape)} "
            f"and {tuple(state.shape)}"
        )
    window = torch.cat((state, x[:, None]), dim=1)
    dtype = accumulation_dtype(x.dtype)
    y = (window.to(dtype) * weight.to(dtype).t()).sum(dim=1)
    return F.silu(y).to(x.dtype), window[:, 1:]
