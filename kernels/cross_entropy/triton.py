"""Cross entropy with z-loss whose gradient overwrites the logits: one program a row, two passes over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.architecture import Architecture, architecture_of


@dataclass(frozen=True)
class Launch:
    block: int  # logits a program has in registers at once
    warps: int


# A row of 100352 bfloat16 is 200 KB: with one program of 32 warps on a multiprocessor, 26 MB of rows are under way on an
# H100, so that the second pass finds its row in the L2 cache of 50 MB. Fewer warps take 8 to 16% longer.
LAUNCHES: dict[Architecture, Launch] = {
    "sm_80": Launch(16384, 32),  # guess: as sm_90
    "sm_90": Launch(16384, 32),  # measured: README.md
    "sm_100": Launch(16384, 32),  # guess: as sm_90
}


def cross_entropy_with_gradient_(logits: Tensor, targets: Tensor, *, scale: float | Tensor, z_loss: float) -> Tensor:
    """The same function as `reference.cross_entropy_with_gradient_`, float32; logits with contiguous rows."""
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=logits.device)
    return torch.ops.holdfast.cross_entropy_with_gradient_(logits, targets, scale, z_loss)


@triton.jit
def _kernel(
    logits_ptr, targets_ptr, scale_ptr, loss_ptr, z_loss, vocabulary, row_stride, IGNORE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    target = tl.load(targets_ptr + row)
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    column = tl.arange(0, BLOCK)
    if target == IGNORE:
        tl.store(loss_ptr + row, 0.0)
        for start in range(0, vocabulary, BLOCK):
            zeros = tl.zeros((BLOCK,), dtype)
            tl.store(logits_ptr + start + column, zeros, mask=start + column < vocabulary)
        return
    # Each lane keeps a maximum and a sum of its own columns; they meet once, after the pass.
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        x = tl.load(logits_ptr + start + column, mask=start + column < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(high, x)
        # Of a lane that has seen only -inf, both differences would be NaN.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(high - finite) + tl.exp(x - finite)
        high = higher
    peak = tl.max(high, axis=0)
    lse = peak + tl.log(tl.sum(total * tl.exp(high - peak), axis=0))
    at_target = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(loss_ptr + row, lse - at_target + z_loss * lse * lse)
    tl.debug_barrier()  # the target's logit is read before anyone overwrites it
    scale = tl.load(scale_ptr).to(tl.float32)
    slope = scale * (1.0 + 2.0 * z_loss * lse)
    for start in range(0, vocabulary, BLOCK):
        inside = start + column < vocabulary
        x = tl.load(logits_ptr + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        grad = slope * tl.exp(x - lse) - tl.where(start + column == target, scale, 0.0)
        tl.store(logits_ptr + start + column, grad.to(dtype), mask=inside)


@torch.library.custom_op(
    "holdfast::cross_entropy_with_gradient_",
    mutates_args=("logits",),
    schema="(Tensor(a!) logits, Tensor targets, Tensor scale, float z_loss) -> Tensor",
)
def _run(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float) -> Tensor:
    rows, vocabulary = logits.shape
    if logits.stride(1) != 1:
        raise ValueError(f"logits must have contiguous rows, got strides {logits.stride()}")
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    launch = LAUNCHES[architecture_of(logits.device)]
    if rows:
        with torch.cuda.device_of(logits):
            _kernel[(rows,)](
                logits, targets.contiguous(), scale, loss, z_loss, vocabulary, logits.stride(0),
                IGNORE=-100, BLOCK=min(launch.block, triton.next_power_of_2(vocabulary)), num_warps=launch.warps,
            )  # fmt: skip
    return loss


@_run.register_fake
def _(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)
