"""The gated delta rule by Triton kernels, as operators of torch.library: one node of a compiled graph, and autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gated_delta_rule.chunk_kernel import FACTORS
from kernels.gated_delta_rule.inputs import LARGEST_KEY_DIM, check_shapes
from kernels.gated_delta_rule.launch import CHUNK_SIZE, Saved, run_backward, run_forward

DTYPES = (torch.bfloat16, torch.float32)


def triton_gated_delta_rule(
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
    """The same function as `reference.recurrent_gated_delta_rule`, in chunks of 64, by tensor cores.

    Args, returns and raises as there, with q, k and v all bfloat16 or all float32, on CUDA (or anywhere in Triton's
    interpreter). Products of bfloat16 inputs are summed in float32; float32 inputs take three tf32 products for one.
    Ids and offsets are not read on the host. The same inputs give the same bits.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_shapes(q, k, v, g, beta, initial_state, document_ids, cu_seqlens)
    if not supports(q, k, v):
        raise ValueError(
            f"q, k and v must share one of {DTYPES} and K be at most {LARGEST_KEY_DIM}, got {q.dtype}, {k.dtype}, "
            f"{v.dtype} and K = {q.shape[-1]}; kernels.gated_delta_rule.chunked takes any"
        )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    g, beta, initial_state, document_ids, cu_seqlens = (
        None if x is None else x.contiguous() for x in (g, beta, initial_state, document_ids, cu_seqlens)
    )
    out, final_state, *_ = gated_delta_rule_forward(
        q, k, v, g, beta, initial_state, document_ids, cu_seqlens,
        q.shape[-1] ** -0.5 if scale is None else scale, normalize_qk, output_final_state,
    )  # fmt: skip
    return out, final_state if output_final_state else None


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these dtypes and this key dimension."""
    return v.dtype in DTYPES and q.dtype == k.dtype == v.dtype and q.shape[-1] <= LARGEST_KEY_DIM


@torch.library.custom_op("holdfast::gated_delta_rule_forward", mutates_args=())
def gated_delta_rule_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    normalize_qk: bool,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(o, final states, empty unless asked for, *launch.Saved)."""
    out, final_state, saved = run_forward(
        q, k, v, g, beta, initial_state, document_ids, cu_seqlens, scale, normalize_qk, output_final_state
    )
    return out, final_state, *saved


@gated_delta_rule_forward.register_fake
def _(q, k, v, g, beta, initial_state, document_ids, cu_seqlens, scale, normalize_qk, output_final_state):  # type: ignore[no-untyped-def]
    batch, length, _, key_dim = q.shape
    heads, value_dim = v.shape[2:]
    rows, chunks = batch, batch * ((length + CHUNK_SIZE - 1) // CHUNK_SIZE)
    if cu_seqlens is not None:
        rows = cu_seqlens.shape[0] - 1
        chunks = length // CHUNK_SIZE + rows
    tile = (chunks, heads, CHUNK_SIZE, CHUNK_SIZE)
    return (
        torch.empty(v.shape, dtype=v.dtype, device=v.device),
        v.new_empty((rows, heads, key_dim, value_dim) if output_final_state else (0,), dtype=torch.float32),
        q.new_empty(tile),
        q.new_empty(tile),
        q.new_empty((chunks, heads, FACTORS.value, CHUNK_SIZE), dtype=torch.float32),
        q.new_empty((chunks, heads), dtype=torch.float32),
    )


@torch.library.custom_op("holdfast::gated_delta_rule_backward", mutates_args=())
def gated_delta_rule_backward(
    out_gradient: Tensor,
    final_state_gradient: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    inverse: Tensor,
    attention: Tensor,
    factors: Tensor,
    chunk_decay: Tensor,
    scale: float,
    normalize_qk: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`launch.Gradients`."""
    final_state_gradient = None if final_state_gradient is None else final_state_gradient.contiguous()
    return run_backward(
        out_gradient.contiguous(), final_state_gradient, q, k, v, g, beta, initial_state, document_ids, cu_seqlens,
        Saved(inverse, attention, factors, chunk_decay), scale, normalize_qk,
    )  # fmt: skip


@gated_delta_rule_backward.register_fake
def _(out_gradient, final_state_gradient, q, k, v, g, beta, initial_state, *rest):  # type: ignore[no-untyped-def]
    none = v.new_empty(0, dtype=torch.float32)
    initial = none if initial_state is None else torch.empty_like(initial_state)
    return (*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, g, beta)), initial)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, scale, normalize_qk, _ = inputs
    saved = output[2:]
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *saved)
    ctx.scale, ctx.normalize_qk = scale, normalize_qk


def _backward(ctx, out_gradient, final_state_gradient, *_):  # type: ignore[no-untyped-def]
    *tensors, inverse, attention, factors, chunk_decay = ctx.saved_tensors
    if out_gradient is None:
        out_gradient = torch.zeros_like(tensors[2])
    *gradients, initial = gated_delta_rule_backward(
        out_gradient, final_state_gradient, *tensors, inverse, attention, factors, chunk_decay,
        ctx.scale, ctx.normalize_qk,
    )  # fmt: skip
    return (*gradients, initial if tensors[5] is not None else None, None, None, None, None, None)


gated_delta_rule_forward.register_autograd(_backward, setup_context=_setup_context)
