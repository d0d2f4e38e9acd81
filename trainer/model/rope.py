"""Rotary position embedding (Su et al., arXiv:2104.09864), in the layout of Llama and Olmo: halves, not pairs.

The tables are made once a forward pass, outside the blocks, not held in a buffer: a buffer would be cast to bfloat16
with the module and be lost when a model built on the meta device is materialised. Inside a compiled block they would be
computed for each head anew.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each float32 [T, head_dim / 2]; frequency i is theta^(-2 i / head_dim)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of [..., D] by its angle; cos and sin broadcast to [..., D / 2].

    Rotates in float32 or wider, returns x's dtype.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
