"""The training loss: cross entropy with z-loss."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.precision import accumulation_dtype

IGNORE_INDEX = -100  # torch's default; masked instances and the last position of a row


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
