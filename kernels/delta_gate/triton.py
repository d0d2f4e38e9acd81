"""The log decay in Triton: one pass forward, one backward with partial sums for A_log and dt_bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.architecture import Architecture, architecture_of


@dataclass(frozen=True)
class Launch:
    rows: int  # tokens of a program, also the length that a partial sum spans
    warps: int


# 4 MB at 32768 tokens and 30 heads: any tile is a few microseconds. 64 tokens give 512 programs there.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(64, 4),  # guess: as sm_90
    "sm_90": Launch(64, 4),  # measured: 7 us forward, README.md
    "sm_100": Launch(64, 4),  # guess: as sm_90
}


def delta_gate(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """The same function as `reference.delta_gate` in float32; differentiable in all three."""
    return torch.ops.holdfast.delta_gate(x, A_log, dt_bias)


@triton.jit
def _tile(heads, rows, ROWS: tl.constexpr, BLOCK_H: tl.constexpr):
    """Offsets [ROWS, BLOCK_H] into [rows, heads], their mask, and the heads with theirs."""
    head = tl.arange(0, BLOCK_H)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (head < heads)[None, :]
    return row[:, None] * heads + head[None, :], mask, head, head < heads


@triton.jit
def _softplus(z):
    """log(1 + e^z) as torch computes it: z itself above 20, and log1p below, which keeps the digits of a small e^z."""
    e = tl.exp(tl.minimum(z, 20.0))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
    return tl.where(z > 20.0, z, log1p)


@triton.jit
def _forward_kernel(x_ptr, a_ptr, bias_ptr, g_ptr, rows, heads, ROWS: tl.constexpr, BLOCK_H: tl.constexpr):
    place, mask, head, in_heads = _tile(heads, rows, ROWS, BLOCK_H)
    rate = tl.exp(tl.load(a_ptr + head, mask=in_heads, other=0.0).to(tl.float32))
    bias = tl.load(bias_ptr + head, mask=in_heads, other=0.0).to(tl.float32)
    z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    tl.store(g_ptr + place, -rate[None, :] * _softplus(z), mask=mask)


@triton.jit
def _backward_kernel(
    dg_ptr, x_ptr, a_ptr, bias_ptr, dx_ptr, partial_ptr, rows, heads, ROWS: tl.constexpr, BLOCK_H: tl.constexpr
):
    place, mask, head, in_heads = _tile(heads, rows, ROWS, BLOCK_H)
    rate = tl.exp(tl.load(a_ptr + head, mask=in_heads, other=0.0).to(tl.float32))
    bias = tl.load(bias_ptr + head, mask=in_heads, other=0.0).to(tl.float32)
    z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    dg = tl.load(dg_ptr + place, mask=mask, other=0.0).to(tl.float32) * -rate[None, :]
    dx = dg * tl.sigmoid(z)
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    partial_ptr += tl.program_id(0) * 2 * heads + head
    tl.store(partial_ptr, tl.sum(dg * _softplus(z), axis=0), mask=in_heads)
    tl.store(partial_ptr + heads, tl.sum(dx, axis=0), mask=in_heads)


@torch.library.custom_op(
    "holdfast::delta_gate", mutates_args=(), schema="(Tensor x, Tensor A_log, Tensor dt_bias) -> Tensor"
)
def _forward(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    g = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    heads = x.shape[-1]
    rows = x.numel() // heads
    with torch.cuda.device_of(x):
        _forward_kernel[(triton.cdiv(rows, launch.rows),)](
            x.contiguous(), A_log.contiguous(), dt_bias.contiguous(), g, rows, heads,
            ROWS=launch.rows, BLOCK_H=triton.next_power_of_2(heads), num_warps=launch.warps,
        )  # fmt: skip
    return g


@_forward.register_fake
def _(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


@torch.library.custom_op(
    "holdfast::delta_gate_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor A_log, Tensor dt_bias) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad: Tensor, x: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    launch = LAUNCHES[architecture_of(x.device)]
    heads = x.shape[-1]
    rows = x.numel() // heads
    programs = triton.cdiv(rows, launch.rows)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, 2, heads, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            grad.contiguous(), x.contiguous(), A_log.contiguous(), dt_bias.contiguous(), dx, partial, rows, heads,
            ROWS=launch.rows, BLOCK_H=triton.next_power_of_2(heads), num_warps=launch.warps,
        )  # fmt: skip
    dA_log, d_bias = partial.sum(0).unbind(0)
    return dx, dA_log.to(A_log.dtype, copy=True), d_bias.to(dt_bias.dtype, copy=True)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), A_log.new_empty(A_log.shape), dt_bias.new_empty(dt_bias.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.holdfast.delta_gate_backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)
