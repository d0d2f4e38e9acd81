"""The operations that models call, each sent to the implementation that suits the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kernels.architecture import HAS_TRITON, runs_triton
from kernels.cross_entropy import reference as cross_entropy_reference
from kernels.delta_gate import reference as delta_gate_reference
from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.gated_delta_rule.documents import document_by_document
from kernels.gated_delta_rule.inputs import LARGEST_KEY_DIM, check_shapes
from kernels.gated_delta_rule.step import gated_delta_rule_step
from kernels.gated_rms_norm import reference as gated_rms_norm_reference
from kernels.l2norm import reference as l2norm_reference
from kernels.rms_norm import reference as rms_norm_reference
from kernels.short_conv import shifted
from kernels.short_conv.step import short_convolution_step

__all__ = [
    "cross_entropy_with_gradient_",
    "delta_gate",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "gated_rms_norm",
    "implementation_for",
    "l2_norm",
    "rms_norm",
    "short_convolution",
    "short_convolution_step",
    "short_convolutions",
]

# Triton is imported where an operation first needs it: a machine without GPUs need not have it, and its import would
# take a trainer on CPU a noticeable part of its start.

Implementation = Literal["chunked", "triton"]


def implementation_for(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Implementation:
    """Name of the form of the gated delta rule that `gated_delta_rule` runs on `device` for q, k, v of `dtype`."""
    has_kernel = device.type == "cuda" and HAS_TRITON and dtype in (torch.bfloat16, torch.float32)
    return "triton" if has_kernel else "chunked"


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    normalize_qk: bool = False,
    document_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule; shapes, dtypes and errors as in `gated_delta_rule.reference.recurrent_gated_delta_rule`.

    `cu_seqlens`, int32 [N + 1] and for one row only, is the other way to pack documents: each of the N has an initial
    and a final state of its own, [N, H, K, V], and may be without tokens. On CUDA it is not read on the host.
    """
    options = {
        "scale": scale,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "normalize_qk": normalize_qk,
    }
    same_dtype = q.dtype == k.dtype == v.dtype
    if implementation_for(q.device, v.dtype) == "triton" and same_dtype and q.shape[-1] <= LARGEST_KEY_DIM:
        from kernels.gated_delta_rule import triton

        return triton.triton_gated_delta_rule(
            q, k, v, g, beta, **options, document_ids=document_ids, cu_seqlens=cu_seqlens
        )
    if cu_seqlens is None:
        return chunk_gated_delta_rule(q, k, v, g, beta, **options, document_ids=document_ids)
    check_shapes(q, k, v, g, beta, initial_state, document_ids, cu_seqlens)
    return document_by_document(chunk_gated_delta_rule, q, k, v, g, beta, cu_seqlens, **options)


def short_convolutions(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], *, document_ids: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`short_conv.reference.short_convolution` of each input with its weight: one operation for q, k and v.

    Args:
        inputs: [B, T, C_i] each.
        weights: [C_i, W] each.
        document_ids: integers [B, T], non-decreasing.

    Returns:
        [B, T, C_i] each.
    """
    widest = max(weight.shape[1] for weight in weights)
    if runs_triton(inputs[0]) and widest <= shifted.MAX_KERNEL_WIDTH:
        from kernels.short_conv import triton

        return triton.short_convolutions(inputs, weights, document_ids=document_ids)
    if len(inputs) == 1:
        return (shifted.short_convolution(inputs[0], weights[0], document_ids=document_ids),)
    # One convolution over all channels, as it is one in each: the fewest operations.
    mixed = shifted.short_convolution(
        torch.cat(tuple(inputs), dim=-1), torch.cat(tuple(weights)), document_ids=document_ids
    )
    return mixed.split([x.shape[-1] for x in inputs], dim=-1)


def short_convolution(x: Tensor, weight: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """`short_conv.reference.short_convolution`."""
    return short_convolutions((x,), (weight,), document_ids=document_ids)[0]


def delta_gate(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """`delta_gate.reference.delta_gate`."""
    if runs_triton(x):
        from kernels.delta_gate import triton

        return triton.delta_gate(x, A_log, dt_bias)
    return delta_gate_reference.delta_gate(x, A_log, dt_bias)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`gated_rms_norm.reference.gated_rms_norm`."""
    if runs_triton(x):
        from kernels.gated_rms_norm import triton

        return triton.gated_rms_norm(x, gate, weight, eps)
    return gated_rms_norm_reference.gated_rms_norm(x, gate, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm.reference.rms_norm`."""
    if runs_triton(x):
        from kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps)
    return rms_norm_reference.rms_norm(x, weight, eps)


def l2_norm(x: Tensor) -> Tensor:
    """`l2norm.reference.l2_norm`."""
    if runs_triton(x):
        from kernels.l2norm import triton

        return triton.l2_norm(x)
    return l2norm_reference.l2_norm(x)


def cross_entropy_with_gradient_(
    logits: Tensor, targets: Tensor, *, scale: float | Tensor = 1.0, z_loss: float = 0.0
) -> Tensor:
    """`cross_entropy.reference.cross_entropy_with_gradient_`; on CUDA the logits need contiguous rows."""
    if runs_triton(logits):
        from kernels.cross_entropy import triton

        return triton.cross_entropy_with_gradient_(logits, targets, scale=scale, z_loss=z_loss)
    return cross_entropy_reference.cross_entropy_with_gradient_(logits, targets, scale=scale, z_loss=z_loss)
