"""Feed-forward networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import SwiGLUSpec


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer, arXiv:2002.05202), without biases."""

    def __init__(self, d_model: int, spec: SwiGLUSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, spec.hidden_dim, bias=False)
        self.up_proj = nn.Linear(d_model, spec.hidden_dim, bias=False)
        self.down_proj = nn.Linear(spec.hidden_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
