"""L2 normalisation in Triton, for callers whose next kernel does not do it while it has the row in registers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.architecture import Architecture, architecture_of
from kernels.l2norm.reference import L2_NORM_EPS
from kernels.rows import as_rows, tile_shape


@dataclass(frozen=True)
class Launch:
    tile: int  # elements
    warps: int


# Every tile from 1024 to 8192 elements runs at the speed of memory.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(2048, 4),  # guess: as sm_90
    "sm_90": Launch(2048, 4),  # measured: README.md
    "sm_100": Launch(2048, 4),  # guess: as sm_90
}


def l2_norm(x: Tensor) -> Tensor:
    """The same function as `reference.l2_norm`, summed in float32; differentiable."""
    return torch.ops.holdfast.l2_norm(x, L2_NORM_EPS)


@triton.jit
def _forward_kernel(x_ptr, y_ptr, eps, rows, row_stride, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) + eps)[:, None]
    tl.store(y_ptr + row[:, None] * DIM + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, dx_ptr, eps, rows, row_stride, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    column = tl.arange(0, BLOCK_D)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    place = row[:, None] * DIM + column[None, :]
    x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) + eps)[:, None]
    y = x * scale
    dx = scale * (dy - y * tl.sum(dy * y, axis=1)[:, None])
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("holdfast::l2_norm", mutates_args=(), schema="(Tensor x, float eps) -> Tensor")
def _forward(x: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    flat = as_rows(x)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    with torch.cuda.device_of(x):
        _forward_kernel[(triton.cdiv(rows, block_rows),)](
            flat, y, eps, rows, flat.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, num_warps=launch.warps,
        )  # fmt: skip
    return y


@_forward.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "holdfast::l2_norm_backward", mutates_args=(), schema="(Tensor grad, Tensor x, float eps) -> Tensor"
)
def _backward(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    flat = as_rows(x)
    rows, dim = flat.shape
    block_rows, block_columns = tile_shape(dim, launch.tile)
    with torch.cuda.device_of(x):
        _backward_kernel[(triton.cdiv(rows, block_rows),)](
            grad.contiguous(), flat, dx, eps, rows, flat.stride(0),
            DIM=dim, ROWS=block_rows, BLOCK_D=block_columns, num_warps=launch.warps,
        )  # fmt: skip
    return dx


@_backward.register_fake
def _(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, float], output: Tensor) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.holdfast.l2_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_forward.register_autograd(_differentiate, setup_context=_save)
