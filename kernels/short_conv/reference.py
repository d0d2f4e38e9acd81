"""Depthwise causal convolution with SiLU, the short mixing over neighbours before the delta rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.precision import accumulation_dtype


def short_convolution(x: Tensor, weight: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """`y[t, c] = silu(sum_j weight[c, W - 1 - j] x[t - j, c])`: each channel sees its own last W values.

    Args:
        x: [B, T, C], any floating dtype; summed in at least float32.
        weight: [C, W]; the last column weighs the current token, as in `torch.nn.Conv1d`.
        document_ids: integers [B, T], non-decreasing; taps that would reach into another document read zero.

    Returns:
        [B, T, C] in the dtype of x.

    Raises:
        ValueError: channels do not fit.
    """
    check_channels(x, weight)
    dtype = accumulation_dtype(x.dtype)
    wide, taps = x.to(dtype), weight.to(dtype).unbind(dim=1)
    out = torch.zeros_like(wide)
    for shift, tap in enumerate(reversed(taps[-x.shape[1] :])):
        reached = wide[:, : x.shape[1] - shift]
        if document_ids is not None:
            reached = reached * same_document(document_ids, shift)
        out = out + F.pad(reached * tap, (0, 0, shift, 0))
    return F.silu(out).to(x.dtype)


def check_channels(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless the weight has a row for each channel of x."""
    if x.ndim != 3 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x must be [B, T, C] and weight [C, W], got {tuple(x.shape)} and {tuple(weight.shape)}")


def same_document(document_ids: Tensor, shift: int) -> Tensor:
    """bool [B, T - shift, 1]: token t + shift belongs to the document of token t."""
    length = document_ids.shape[1]
    return (document_ids[:, shift:] == document_ids[:, : length - shift])[..., None]
