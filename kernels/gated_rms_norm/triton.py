"""The gated RMSNorm in Triton: one pass over x and the gate forward, one over both and the gradient backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.architecture import Architecture, architecture_of
from kernels.rows import as_rows, tile_shape


@dataclass(frozen=True)
class Launch:
    tile: int  # elements
    warps: int
    backward_tiles: int  # that a program walks along, summing the weight's gradient


# 1024 elements are 4 rows of 192 (padded to 256), of one warp: sums over a row and over rows stay inside it, without the
# shared memory and barriers that cost larger tiles 25 to 100% more time in the backward pass.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(1024, 1, 32),  # guess: as sm_90
    "sm_90": Launch(1024, 1, 32),  # measured: README.md
    "sm_100": Launch(1024, 1, 32),  # guess: as sm_90
}


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.gated_rms_norm`; differentiable in x, gate and weight."""
    return torch.ops.holdfast.gated_rms_norm(x, gate, weight, eps)


@triton.jit
def _weighted(normed, weight, X: tl.constexpr, PRODUCT: tl.constexpr):
    """weight * normed, rounded as PyTorch does: normed to x's dtype, the product to the wider of both dtypes."""
    return (weight[None, :] * normed.to(X).to(tl.float32)).to(PRODUCT).to(tl.float32)


@triton.jit
def _forward_kernel(
    x_ptr, gate_ptr, weight_ptr, y_ptr, eps, rows, x_stride, gate_stride,
    DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    product: tl.constexpr = tl.float32 if WIDE else dtype
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row[:, None] * gate_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
    y = _weighted(normed, weight, dtype, product) * (gate * tl.sigmoid(gate))
    tl.store(y_ptr + row[:, None] * DIM + column[None, :], y.to(dtype), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, gate_ptr, weight_ptr, dx_ptr, dgate_ptr, partial_ptr, eps, rows, x_stride, gate_stride,
    DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    product: tl.constexpr = tl.float32 if WIDE else dtype
    weight = tl.load(weight_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < DIM)[None, :]
        place = row[:, None] * DIM + column[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + row[:, None] * gate_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
        normed = x * scale
        s = tl.sigmoid(gate)
        d_gate = dy * _weighted(normed, weight, dtype, product) * s * (1 + gate * (1 - s))
        tl.store(dgate_ptr + place, d_gate.to(dgate_ptr.dtype.element_ty), mask=mask)
        d_product = dy * gate * s
        d_weight += tl.sum(d_product * normed, axis=0)
        d_normed = d_product * weight[None, :]
        mean = tl.sum(d_normed * normed, axis=1) / DIM
        dx = scale * (d_normed - normed * mean[:, None])
        tl.store(dx_ptr + place, dx.to(dtype), mask=mask)
    tl.store(partial_ptr + tl.program_id(0) * DIM + column, d_weight, mask=column < DIM)


@torch.library.custom_op(
    "holdfast::gated_rms_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor gate, Tensor weight, float eps) -> Tensor",
)
def _forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    flat, flat_gate = as_rows(x), as_rows(gate)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    with torch.cuda.device_of(x):
        _forward_kernel[(triton.cdiv(rows, block_rows),)](
            flat, flat_gate, weight.contiguous(), y, eps, rows, flat.stride(0), flat_gate.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, WIDE=_product_is_wide(x, weight), num_warps=launch.warps,
        )  # fmt: skip
    return y


def _product_is_wide(x: Tensor, weight: Tensor) -> bool:
    return torch.promote_types(x.dtype, weight.dtype) != x.dtype


@_forward.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "holdfast::gated_rms_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor gate, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    launch = LAUNCHES[architecture_of(x.device)]
    flat, flat_gate = as_rows(x), as_rows(gate)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    programs = triton.cdiv(rows, block_rows * launch.backward_tiles)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    partial = torch.empty(programs, dim, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            grad.contiguous(), flat, flat_gate, weight.contiguous(), dx, d_gate, partial,
            eps, rows, flat.stride(0), flat_gate.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, WIDE=_product_is_wide(x, weight),
            TILES=launch.backward_tiles, num_warps=launch.warps,
        )  # fmt: skip
    return dx, d_gate, partial.sum(0).to(weight.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *torch.ops.holdfast.gated_rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_forward.register_autograd(_differentiate, setup_context=_save)
