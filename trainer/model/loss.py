"""The training loss: cross entropy with z-loss, of logits or straight from hidden states without whole logits."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.cross_entropy.reference import IGNORE_INDEX
from kernels.ops import cross_entropy_with_gradient_
from kernels.precision import accumulation_dtype

# Logits of one chunk. CUDA: 1 GiB in bfloat16, two chunks for 8192 tokens of 100352 logits, large enough that the head's
# matrix products run at full rate. CPU: one chunk for everything that fits 64 MiB in float32.
_CHUNK_ELEMENTS = {"cuda": 1 << 29, "cpu": 1 << 24}
_CHUNK_MULTIPLE = 128  # tokens: a tile of a matrix product


def cross_entropy(
    logits: Tensor, targets: Tensor, *, denominator: float | Tensor | None = None, z_loss: float = 0.0
) -> Tensor:
    """`sum(-log p[target] + z_loss * lse^2) / denominator` over the targets that count, lse = logsumexp(logits).

    The z-loss (PaLM, arXiv:2204.02311, section 5) holds the normaliser near one. lse is had from the target's logit and
    log probability, without a second pass over the vocabulary.

    Args:
        logits: [..., vocab], any floating dtype; the sum is done in at least float32.
        targets: int64 [...]; IGNORE_INDEX where there is none.
        denominator: what the sum is divided by; the number of targets that count if None. A trainer gives the number of
            tokens of the rank, masked ones included.
        z_loss: the weight of the z-loss.

    Returns:
        A scalar in at least float32; zero if no target counts.
    """
    wide = logits.to(accumulation_dtype(logits.dtype))
    counted = targets != IGNORE_INDEX
    index = targets.masked_fill(~counted, 0)[..., None]
    log_p = wide.log_softmax(dim=-1).gather(-1, index).squeeze(-1)
    per_token = -log_p
    if z_loss:
        lse = wide.gather(-1, index).squeeze(-1) - log_p
        per_token = per_token + z_loss * lse.square()
    total = torch.where(counted, per_token, 0.0).sum()
    return total / (counted.sum().clamp(min=1) if denominator is None else denominator)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    denominator: float | None = None,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)`, a chunk of tokens at a time: logits are never whole in memory.

    The gradients of `hidden` and `weight` are made in the forward pass, while a chunk's logits are there. They cost the
    memory of one more `hidden` and one more `weight` until the backward pass. The weight's sum over chunks is in its
    own dtype: each product sums its chunk in float32 and rounds once, so bfloat16 loses at most as many roundings as
    there are chunks, where float32 would double the largest gradient of the model. Chunks are summed in order: same bits.

    Args:
        hidden: [..., D]. weight: [V, D], of the same dtype.
        targets: int64 [...]; IGNORE_INDEX where there is none.
        denominator: as in `cross_entropy`, but a number.
        z_loss: as in `cross_entropy`.
        chunk_tokens: tokens of a chunk; by size and device if None.

    Returns:
        A scalar in at least float32. Differentiable once, and backward can be run once.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    counted = (targets != IGNORE_INDEX).sum().clamp(min=1).to(accumulation_dtype(hidden.dtype))
    scale = counted.reciprocal() if denominator is None else 1 / denominator
    size = chunk_tokens or _chunk_tokens(len(hidden), len(weight), hidden.device)
    return _LinearCrossEntropy.apply(hidden, weight, targets, scale, z_loss, size)


@functools.cache
def unit_gradient(device: torch.device) -> Tensor:
    """The one to call `loss.backward(...)` with: known by identity, it spares a pass over the head's gradient.

    That it is one can't be seen on the host without waiting for the device. Must not be written to.
    """
    return torch.ones((), device=device)


def _chunk_tokens(tokens: int, vocab_size: int, device: torch.device) -> int:
    """Equal chunks, as few as the limit allows."""
    limit = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS["cuda"])
    chunks = -(-tokens * vocab_size // limit)
    return -(-tokens // (chunks * _CHUNK_MULTIPLE)) * _CHUNK_MULTIPLE


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float | Tensor,
        z_loss: float,
        size: int,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        total = torch.zeros((), dtype=accumulation_dtype(hidden.dtype), device=hidden.device)
        for begin in range(0, len(hidden), size):
            chunk = slice(begin, begin + size)
            logits = hidden[chunk] @ weight.T
            total += cross_entropy_with_gradient_(logits, targets[chunk], scale=scale, z_loss=z_loss).sum()
            if needs_hidden:
                torch.mm(logits, weight, out=grad_hidden[chunk])
            if needs_weight and grad_weight is None:
                grad_weight = logits.T @ hidden[chunk]
            elif needs_weight:
                grad_weight.addmm_(logits.T, hidden[chunk])
            del logits  # before the next chunk's are made
        ctx.gradients = (grad_hidden, grad_weight)
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_cross_entropy were handed out; backward can be run once")
        gradients, ctx.gradients = ctx.gradients, None
        if grad.data_ptr() != unit_gradient(grad.device).data_ptr():
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad)
        return *gradients, None, None, None, None
