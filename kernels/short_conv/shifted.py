"""The short convolution as in-place sums of shifted copies, with its gradient written out.

PyTorch's grouped `conv1d` takes ten times as long in its CPU backward pass, and autograd through slices makes a zeroed
copy of the whole input for each tap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.precision import accumulation_dtype
from kernels.short_conv.reference import check_channels, same_document

MAX_KERNEL_WIDTH = 4  # of the Triton form, whose backward kernel keeps a row of each tap in registers


def short_convolution(x: Tensor, weight: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """The same function as `reference.short_convolution`; args, returns and raises as there."""
    check_channels(x, weight)
    dtype = accumulation_dtype(x.dtype)
    return F.silu(_ShiftedSum.apply(x.to(dtype), weight.to(dtype), document_ids)).to(x.dtype)


class _ShiftedSum(torch.autograd.Function):
    """`z[t] = sum_j w_j x[t - j]`, so `dx[t] = sum_j w_j dz[t + j]` and `dw_j = sum_t x[t - j] dz[t]`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, document_ids: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, document_ids)
        length = x.shape[1]
        out = x * weight[:, -1]
        for shift in range(1, min(weight.shape[1], length)):
            out[:, shift:].addcmul_(_masked(x[:, : length - shift], document_ids, shift), weight[:, -1 - shift])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, document_ids = ctx.saved_tensors
        length, width = x.shape[1], weight.shape[1]
        grad_x = grad * weight[:, -1]
        grad_weight = torch.zeros_like(weight)
        grad_weight[:, -1] = (grad * x).sum(dim=(0, 1))
        for shift in range(1, min(width, length)):
            from_later = _masked(grad[:, shift:], document_ids, shift)
            grad_x[:, : length - shift].addcmul_(from_later, weight[:, -1 - shift])
            grad_weight[:, -1 - shift] = (from_later * x[:, : length - shift]).sum(dim=(0, 1))
        return grad_x, grad_weight, None


def _masked(values: Tensor, document_ids: Tensor | None, shift: int) -> Tensor:
    return values if document_ids is None else values * same_document(document_ids, shift)
