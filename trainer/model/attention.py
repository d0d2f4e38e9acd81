"""Causal multi-head attention of Olmo 2, 3 and Hybrid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import AttentionSpec
from trainer.model.context import Context
from trainer.model.norms import RMSNorm
from trainer.model.rope import rotate


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

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, T, d_model] to the same."""
        q, k, v = self.project_qkv(x, context.cos, context.sin)
        return self.o_proj(attend(q, k, v, self.spec.window, context).flatten(2))

    def project_qkv(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, T, H, D] of tokens whose rotary tables are cos and sin [T, D / 2], if there is an embedding."""
        q = self._heads(self.q_norm(self.q_proj(x)))
        k = self._heads(self.k_norm(self.k_proj(x)))
        v = self._heads(self.v_proj(x))
        if cos is not None and sin is not None:
            cos, sin = cos[:, None], sin[:, None]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.spec.heads, self.spec.head_dim))


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, context: Context) -> Tensor:
    """Causal attention within documents and, if given, within a window of tokens; all [B, T, H, D].

    With `context.cu_seqlens`, in 16 bits, by the flash kernel of variable lengths, in linear memory; its backward pass
    is deterministic where torch.use_deterministic_algorithms is on. Else by scaled_dot_product_attention, with a dense mask
    unless plain causal attention says it all.
    """
    rows, length = q.shape[:2]
    if context.cu_seqlens is not None and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn  # brings torch._dynamo, a second that a CPU doesn't need

        flat = [x.flatten(0, 1) for x in (q, k, v)]
        cu = context.cu_seqlens
        left = -1 if window is None or window >= length else window - 1  # the kernel doesn't count the token itself
        return varlen_attn(*flat, cu, cu, length, length, window_size=(left, 0)).unflatten(0, (rows, length))
    mask = attention_mask(length, window, context.document_ids, q.device)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


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
