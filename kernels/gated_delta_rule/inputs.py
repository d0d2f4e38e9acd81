"""What every form of the gated delta rule does to its inputs before the recurrence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kernels.l2norm.reference import l2_norm
from kernels.precision import accumulation_dtype

LARGEST_KEY_DIM = 256  # of the Triton form, which holds the state's K columns in registers


class DeltaRuleInputs(NamedTuple):
    """Checked and cast inputs, at least float32: q, k [B, T, H, K]; v [B, T, H, V]; g, beta [B, T, H]; H heads of v."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Tensor | None


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
    """Check shapes, cast to the accumulation dtype, normalise q and k if asked, scale q, repeat both for their groups.

    Raises:
        ValueError: a shape does not fit, or there is no token.
    """
    check_shapes(q, k, v, g, beta, initial_state, document_ids)
    dtype = accumulation_dtype(v.dtype)
    q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    if normalize_qk:
        q, k = l2_norm(q), l2_norm(k)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if q.shape[2] != v.shape[2]:
        q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    return DeltaRuleInputs(q, k, v, g, beta, None if initial_state is None else initial_state.to(dtype))


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> None:
    """Raise ValueError, with the name and both shapes, for the first input that does not fit `q` and `v`."""
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v must be [B, T, H, D], got {tuple(q.shape)} and {tuple(v.shape)}")
    batch, length, query_heads, key_dim = q.shape
    if length == 0:
        raise ValueError("the gated delta rule needs at least one token")
    heads = v.shape[2]
    if heads % query_heads != 0:
        raise ValueError(f"the heads of v must be a multiple of those of q, got {heads} and {query_heads}")
    rows = batch if cu_seqlens is None else _documents(cu_seqlens, batch, document_ids)
    expected = {
        "k": (k, (batch, length, query_heads, key_dim)),
        "v": (v, (batch, length, heads, v.shape[-1])),
        "g": (g, (batch, length, heads)),
        "beta": (beta, (batch, length, heads)),
        "initial_state": (initial_state, (rows, heads, key_dim, v.shape[-1])),
        "document_ids": (document_ids, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _documents(cu_seqlens: Tensor, batch: int, document_ids: Tensor | None) -> int:
    """The number of documents; raises ValueError where `cu_seqlens` cannot be used."""
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (documents + 1,), got {tuple(cu_seqlens.shape)}")
    if batch != 1 or document_ids is not None:
        raise ValueError("cu_seqlens needs a batch of one row, and no document_ids beside it")
    return cu_seqlens.shape[0] - 1
