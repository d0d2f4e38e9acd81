"""The short convolution of several tensors in one operation: Triton forward, backward and weight gradient.

Bytes, floor and the choice of tiles are in README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.architecture import Architecture, architecture_of
from kernels.short_conv.reference import check_channels
from kernels.short_conv.shifted import MAX_KERNEL_WIDTH


@dataclass(frozen=True)
class Launch:
    """Tiles of the forward kernel; channels and rows that a program of the backward kernel walks along."""

    forward_rows: int
    forward_channels: int
    forward_warps: int
    backward_rows: int  # also the length that a partial sum of the weight's gradient spans
    backward_channels: int
    backward_warps: int


# One warp walks a backward segment: rows follow each other, so several warps would only share the waiting. 128 rows keep
# the halo (7 rows read besides) and the partial sums near 5% of the traffic each, and fill an H100 at 8192 tokens; 256
# are 2% faster at 32768 tokens and leave half of it idle at 8192.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(16, 128, 4, 128, 256, 1),  # guess: as sm_90
    "sm_90": Launch(16, 128, 4, 128, 256, 1),  # measured: README.md
    "sm_100": Launch(16, 128, 4, 128, 256, 1),  # guess: as sm_90
}


def short_convolutions(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], *, document_ids: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`reference.short_convolution` of each input with its weight, all at the same positions of the same documents.

    Args:
        inputs: [B, T, C_i] each; rows may be strided, so that slices of a wider tensor are read where they lie.
        weights: [C_i, W] each, W <= MAX_KERNEL_WIDTH.
        document_ids: integers [B, T], non-decreasing.

    Returns:
        [B, T, C_i] each, contiguous, in the dtype of its input.

    Raises:
        ValueError: channels do not fit, or a weight is wider than MAX_KERNEL_WIDTH.
    """
    for x, weight in zip(inputs, weights, strict=True):
        check_channels(x, weight)
        if weight.shape[1] > MAX_KERNEL_WIDTH:
            raise ValueError(f"convolutions wider than {MAX_KERNEL_WIDTH} have no kernel, got {weight.shape[1]}")
    return tuple(torch.ops.holdfast.short_convolutions(list(inputs), list(weights), document_ids))


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, ids_ptr, y_ptr, length, channels, x_batch_stride, x_time_stride,
    WIDTH: tl.constexpr, PACKED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    time = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    batch = tl.program_id(2).to(tl.int64)
    in_channels = channel < channels
    x_ptr += batch * x_batch_stride
    ids_ptr += batch * length
    z = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for shift in tl.static_range(WIDTH):
        source = time - shift
        reached = (source >= 0) & (time < length)
        if PACKED:
            reached &= tl.load(ids_ptr + source, mask=reached) == tl.load(ids_ptr + time, mask=reached)
        tap = tl.load(weight_ptr + channel * WIDTH + (WIDTH - 1 - shift), mask=in_channels, other=0.0)
        place = source.to(tl.int64)[:, None] * x_time_stride + channel[None, :]
        x = tl.load(x_ptr + place, mask=reached[:, None] & in_channels[None, :], other=0.0)
        z += x.to(tl.float32) * tap.to(tl.float32)[None, :]
    y = z * tl.sigmoid(z)
    place = (batch * length + time.to(tl.int64))[:, None] * channels + channel[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=(time < length)[:, None] & in_channels[None, :])


@triton.jit
def _row(ptr, time, time_stride, channel, in_channels, length):
    in_row = in_channels & (time >= 0) & (time < length)
    return tl.load(ptr + tl.cast(time, tl.int64) * time_stride + channel, mask=in_row, other=0.0).to(tl.float32)


@triton.jit
def _tap(weight_ptr, channel, in_channels, shift: tl.constexpr, WIDTH: tl.constexpr):
    exists = in_channels & (shift < WIDTH)
    return tl.load(weight_ptr + channel * WIDTH + (WIDTH - 1 - shift), mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _document(ids_ptr, time, length):
    """The id of a row; of one outside, where there is nothing to mask, any."""
    return tl.load(ids_ptr + time, mask=(time >= 0) & (time < length), other=-1)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, weight_ptr, ids_ptr, dx_ptr, partial_ptr, length, channels, segments,
    dy_batch_stride, dy_time_stride, x_batch_stride, x_time_stride,
    WIDTH: tl.constexpr, PACKED: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = channel < channels
    start = tl.program_id(1) * ROWS
    batch = tl.program_id(2).to(tl.int64)
    dy_ptr += batch * dy_batch_stride
    x_ptr += batch * x_batch_stride
    ids_ptr += batch * length
    dx_ptr += batch * length * channels
    w0 = _tap(weight_ptr, channel, in_channels, 0, WIDTH)
    w1 = _tap(weight_ptr, channel, in_channels, 1, WIDTH)
    w2 = _tap(weight_ptr, channel, in_channels, 2, WIDTH)
    w3 = _tap(weight_ptr, channel, in_channels, 3, WIDTH)
    # x of the three rows before, and the sums for dx of those rows, which later rows of dy still add to.
    x1 = _row(x_ptr, start - 1, x_time_stride, channel, in_channels, length)
    x2 = _row(x_ptr, start - 2, x_time_stride, channel, in_channels, length)
    x3 = _row(x_ptr, start - 3, x_time_stride, channel, in_channels, length)
    dx1 = tl.zeros((BLOCK_C,), tl.float32)
    dx2 = tl.zeros((BLOCK_C,), tl.float32)
    dx3 = tl.zeros((BLOCK_C,), tl.float32)
    dw0 = tl.zeros((BLOCK_C,), tl.float32)
    dw1 = tl.zeros((BLOCK_C,), tl.float32)
    dw2 = tl.zeros((BLOCK_C,), tl.float32)
    dw3 = tl.zeros((BLOCK_C,), tl.float32)
    # Two rows are always under way, which hides most of the memory's latency.
    x_next = _row(x_ptr, start, x_time_stride, channel, in_channels, length)
    dy_next = _row(dy_ptr, start, dy_time_stride, channel, in_channels, length)
    x_after = _row(x_ptr, start + 1, x_time_stride, channel, in_channels, length)
    dy_after = _row(dy_ptr, start + 1, dy_time_stride, channel, in_channels, length)
    if PACKED:
        id1 = _document(ids_ptr, start - 1, length)
        id2 = _document(ids_ptr, start - 2, length)
        id3 = _document(ids_ptr, start - 3, length)
        id_next = _document(ids_ptr, start, length)
        id_after = _document(ids_ptr, start + 1, length)
    for offset in range(ROWS + 3):
        time = start + offset
        x0, dy = x_next, dy_next
        x_next, dy_next = x_after, dy_after
        x_after = _row(x_ptr, time + 2, x_time_stride, channel, in_channels, length)
        dy_after = _row(dy_ptr, time + 2, dy_time_stride, channel, in_channels, length)
        y1, y2, y3 = x1, x2, x3
        if PACKED:
            id0, id_next, id_after = id_next, id_after, _document(ids_ptr, time + 2, length)
            y1 = tl.where(id1 == id0, x1, 0.0)
            y2 = tl.where(id2 == id0, x2, 0.0)
            y3 = tl.where(id3 == id0, x3, 0.0)
        z = x0 * w0 + y1 * w1 + y2 * w2 + y3 * w3
        s = tl.sigmoid(z)
        dz = dy * s * (1 + z * (1 - s))
        dx0 = dz * w0
        d1, d2, d3 = dz * w1, dz * w2, dz * w3
        if PACKED:
            d1 = tl.where(id1 == id0, d1, 0.0)
            d2 = tl.where(id2 == id0, d2, 0.0)
            d3 = tl.where(id3 == id0, d3, 0.0)
            id3, id2, id1 = id2, id1, id0
        done = time - 3
        place = tl.cast(done, tl.int64) * channels + channel
        tl.store(dx_ptr + place, (dx3 + d3).to(dx_ptr.dtype.element_ty),
                 mask=in_channels & (done >= start) & (done < length))  # fmt: skip
        dx3, dx2, dx1 = dx2 + d2, dx1 + d1, dx0
        dz = tl.where(offset < ROWS, dz, 0.0)  # rows of the next segment are that segment's to count
        dw0 += dz * x0
        dw1 += dz * y1
        dw2 += dz * y2
        dw3 += dz * y3
        x3, x2, x1 = x2, x1, x0
    partial_ptr += (batch * segments + tl.program_id(1)) * 4 * channels + channel
    tl.store(partial_ptr, dw3, mask=in_channels)
    tl.store(partial_ptr + channels, dw2, mask=in_channels)
    tl.store(partial_ptr + 2 * channels, dw1, mask=in_channels)
    tl.store(partial_ptr + 3 * channels, dw0, mask=in_channels)


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward_one(x: Tensor, weight: Tensor, document_ids: Tensor | None) -> Tensor:
    batch, length, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch = LAUNCHES[architecture_of(x.device)]
    x = _readable(x)
    grid = (triton.cdiv(channels, launch.forward_channels), triton.cdiv(length, launch.forward_rows), batch)
    if y.numel():
        _forward_kernel[grid](
            x, weight.contiguous(), x if document_ids is None else document_ids, y,
            length, channels, x.stride(0), x.stride(1),
            WIDTH=weight.shape[1], PACKED=document_ids is not None,
            BLOCK_T=launch.forward_rows, BLOCK_C=launch.forward_channels, num_warps=launch.forward_warps,
        )  # fmt: skip
    return y


def _backward_one(dy: Tensor, x: Tensor, weight: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, length, channels = x.shape
    launch = LAUNCHES[architecture_of(x.device)]
    x, dy = _readable(x), _readable(dy)
    segments = triton.cdiv(length, launch.backward_rows)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(batch * segments, 4, channels, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(channels, launch.backward_channels), segments, batch)
    if dx.numel():
        _backward_kernel[grid](
            dy, x, weight.contiguous(), x if document_ids is None else document_ids, dx, partial,
            length, channels, segments, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
            WIDTH=weight.shape[1], PACKED=document_ids is not None,
            ROWS=launch.backward_rows, BLOCK_C=launch.backward_channels, num_warps=launch.backward_warps,
        )  # fmt: skip
    return dx, partial.sum(0)[4 - weight.shape[1] :].t().to(weight.dtype).contiguous()


@torch.library.custom_op(
    "holdfast::short_convolutions",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor[] weights, Tensor? document_ids) -> Tensor[]",
)
def _forward(inputs: list[Tensor], weights: list[Tensor], document_ids: Tensor | None) -> list[Tensor]:
    ids = None if document_ids is None else document_ids.contiguous()
    with torch.cuda.device_of(inputs[0]):
        return [_forward_one(x, weight, ids) for x, weight in zip(inputs, weights, strict=True)]


@_forward.register_fake
def _(inputs: list[Tensor], weights: list[Tensor], document_ids: Tensor | None) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in inputs]


@torch.library.custom_op(
    "holdfast::short_convolutions_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor[] inputs, Tensor[] weights, Tensor? document_ids) -> (Tensor[], Tensor[])",
)
def _backward(
    grads: list[Tensor], inputs: list[Tensor], weights: list[Tensor], document_ids: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    ids = None if document_ids is None else document_ids.contiguous()
    with torch.cuda.device_of(inputs[0]):
        pairs = [_backward_one(*each, ids) for each in zip(grads, inputs, weights, strict=True)]
    return [dx for dx, _ in pairs], [dw for _, dw in pairs]


@_backward.register_fake
def _(
    grads: list[Tensor], inputs: list[Tensor], weights: list[Tensor], document_ids: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    return [x.new_empty(x.shape) for x in inputs], [weight.new_empty(weight.shape) for weight in weights]


def _save(ctx: FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    xs, weights, document_ids = inputs
    ctx.save_for_backward(*xs, *weights, document_ids)


def _differentiate(ctx: FunctionCtx, grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor], None]:
    *saved, document_ids = ctx.saved_tensors
    xs, weights = saved[: len(grads)], saved[len(grads) :]
    dxs, dws = torch.ops.holdfast.short_convolutions_backward(list(grads), xs, weights, document_ids)
    return dxs, dws, None


_forward.register_autograd(_differentiate, setup_context=_save)
