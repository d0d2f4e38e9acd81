"""Causal multi-head attention of Olmo 2, 3 and Hybrid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import AttentionSpec
from trainer.model.norms import RMSNorm
from trainer.model.rope import rotary_tables, rotate


class Attention(nn.Module):
    """q, k, v projections, RMSNorm over the full width of q and k, RoPE or none, attention, output projection."""

    def __init__(self, d_model: int, spec: AttentionSpec, norm_eps: float) -> None:
        super().__init__()
        width = spec.heads * spec.head_dim
        self.spec = spec
        self.q_proj = nn.Linear(d_model, width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, width, bias=False)
        self.o_proj = nn.Linear(width, d_model, bias=False)
        self.q_norm = RMSNorm(width, norm_eps)
        self.k_norm = RMSNorm(width, norm_eps)

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """[B, T, d_model] to the same; `document_ids` int [B, T], equal within a document only."""
        q = self._heads(self.q_norm(self.q_proj(x)))
        k = self._heads(self.k_norm(self.k_proj(x)))
        v = self._heads(self.v_proj(x))
        if self.spec.rope_theta is not None:
            cos, sin = rotary_tables(x.shape[1], self.spec.head_dim, self.spec.rope_theta, x.device)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = attention_mask(x.shape[1], self.spec.window, document_ids, x.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.spec.heads, self.spec.head_dim)).transpose(1, 2)


def attention_mask(length: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> Tensor | None:
    """True where token i may see token j: bool [T, T] or [B, 1, T, T]; None where plain causal attention says it all.

    None lets scaled_dot_product_attention choose its fused causal kernel.
    """
    if document_ids is None and (window is None or window >= length):
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return mask
