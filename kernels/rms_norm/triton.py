"""RMSNorm in Triton: a row stays in registers between its statistics and its use, forward and backward."""

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
    tile: int  # elements of a tile: one row, or several short ones
    warps: int
    backward_tiles: int  # that a program walks along, summing the weight's gradient


# 4096 elements hold a row of 3840 at 16 floats a thread. 32 tiles a backward program are 1024 programs at 32768 rows, and
# partial sums of 3% of the traffic; 16 or 64 tiles take 4% and 16% longer.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(4096, 8, 32),  # guess: as sm_90
    "sm_90": Launch(4096, 8, 32),  # measured: README.md
    "sm_100": Launch(4096, 8, 32),  # guess: as sm_90
}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.rms_norm`; differentiable in x and weight."""
    return torch.ops.holdfast.rms_norm(x, weight, eps)


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, y_ptr, eps, rows, row_stride, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    column = tl.arange(0, BLOCK_D)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)
    y = weight[None, :] * (x * scale[:, None])
    tl.store(y_ptr + row[:, None] * DIM + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, weight_ptr, dx_ptr, partial_ptr, eps, rows, row_stride,
    DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < DIM)[None, :]
        place = row[:, None] * DIM + column[None, :]
        x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
        normed = x * scale
        d_weight += tl.sum(dy * normed, axis=0)
        d_normed = dy * weight[None, :]
        mean = tl.sum(d_normed * normed, axis=1) / DIM
        dx = scale * (d_normed - normed * mean[:, None])
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + tl.program_id(0) * DIM + column, d_weight, mask=column < DIM)


@torch.library.custom_op("holdfast::rms_norm", mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor")
def _forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    flat = as_rows(x)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    with torch.cuda.device_of(x):
        _forward_kernel[(triton.cdiv(rows, block_rows),)](
            flat, weight.contiguous(), y, eps, rows, flat.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, num_warps=launch.warps,
        )  # fmt: skip
    return y


@_forward.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "holdfast::rms_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
)
def _backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    launch = LAUNCHES[architecture_of(x.device)]
    flat = as_rows(x)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    programs = triton.cdiv(rows, block_rows * launch.backward_tiles)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, dim, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            grad.contiguous(), flat, weight.contiguous(), dx, partial, eps, rows, flat.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, TILES=launch.backward_tiles, num_warps=launch.warps,
        )  # fmt: skip
    return dx, partial.sum(0).to(weight.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, d_weight = torch.ops.holdfast.rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    return dx, d_weight, None


_forward.register_autograd(_differentiate, setup_context=_save)
