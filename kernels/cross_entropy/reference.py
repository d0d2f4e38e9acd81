"""Cross entropy with z-loss that turns the logits into their gradient where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.precision import accumulation_dtype

IGNORE_INDEX = -100  # torch's default


def cross_entropy_with_gradient_(
    logits: Tensor, targets: Tensor, *, scale: float | Tensor = 1.0, z_loss: float = 0.0
) -> Tensor:
    """`-log p[target] + z_loss * lse^2` of each token; the logits become `d sum(scale * loss) / d logits`.

    With `p = softmax(logits)` and `lse = logsumexp(logits)` the gradient of a token is
    `scale * (p * (1 + 2 z_loss lse) - onehot(target))`. Z-loss: PaLM, arXiv:2204.02311, section 5.

    Args:
        logits: [N, V], any floating dtype, overwritten; sums and exponentials are done in at least float32.
        targets: int64 [N]; IGNORE_INDEX where there is none: the loss is 0 there and so is the gradient.
        scale: of the gradient alone; a number, or a tensor without dimensions on the device of the logits.
        z_loss: the weight of the z-loss.

    Returns:
        The losses, not scaled: [N] in at least float32.
    """
    wide = logits.to(accumulation_dtype(logits.dtype), copy=True)
    counted = targets != IGNORE_INDEX
    index = targets.masked_fill(~counted, 0)[:, None]
    lse = wide.logsumexp(dim=-1)
    losses = lse - wide.gather(-1, index).squeeze(-1) + z_loss * lse.square()
    factor = counted.to(wide.dtype) * scale
    gradient = wide.sub_(lse[:, None]).exp_().mul_((factor * (1 + 2 * z_loss * lse))[:, None])
    gradient.scatter_(-1, index, gradient.gather(-1, index) - factor[:, None])
    logits.copy_(gradient)
    return torch.where(counted, losses, 0.0)
