"""What every form of the gated delta rule does to its inputs before the recurrence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.precision import accumulation_dtype

L2_NORM_EPS = 1e-6  # inside the root, as in transformers' OlmoHybrid and fla


class DeltaRuleInputs(NamedTuple):
    """Checked and cast inputs, at least float32: q, k [B, T, H, K]; v [B, T, H, V]; g, beta [B, T, H]."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Tensor | None


def l2_norm(x: Tensor) -> Tensor:
    """`x / sqrt(sum(x^2) + eps)` over the last dimension, in the dtype of `x`."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + L2_NORM_EPS)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None,
    normalize_qk: bool,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
) -> DeltaRuleInputs:
    """Check shapes, cast to the accumulation dtype, normalise q and k if asked, and scale q.

    Raises:
        ValueError: a shape does not fit, or there is no token.
    """
    check_shapes(q, k, v, g, beta, initial_state, document_ids)
    dtype = accumulation_dtype(v.dtype)
    q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    if normalize_qk:
        q, k = l2_norm(q), l2_norm(k)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return DeltaRuleInputs(q, k, v, g, beta, None if initial_state is None else initial_state.to(dtype))


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
) -> None:
    """Raise ValueError, with the name and both shapes, for the first input that does not fit `q` and `v`."""
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v must be [B, T, H, D], got {tuple(q.shape)} and {tuple(v.shape)}")
    batch, length, heads, key_dim = q.shape
    if length == 0:
        raise ValueError("the gated delta rule needs at least one token")
    expected = {
        "k": (k, (batch, length, heads, key_dim)),
        "v": (v, (batch, length, heads, v.shape[-1])),
        "g": (g, (batch, length, heads)),
        "beta": (beta, (batch, length, heads)),
        "initial_state": (initial_state, (batch, heads, key_dim, v.shape[-1])),
        "document_ids": (document_ids, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
