"""The Gated DeltaNet mixer of Olmo Hybrid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.ops import gated_delta_rule, gated_rms_norm, short_convolution
from kernels.precision import accumulation_dtype
from trainer.model.config import GatedDeltaNetSpec


class ShortConvolution(nn.Module):
    """Depthwise causal convolution of width W with SiLU; the weight is [C, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, width))


class GatedRMSNorm(nn.Module):
    """RMSNorm over a value head, gated by SiLU."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gated_rms_norm(x, gate, self.weight, self.eps)


class GatedDeltaNet(nn.Module):
    """Projections and short convolutions of q, k, v; the gated delta rule; gated norm; output projection."""

    def __init__(self, d_model: int, spec: GatedDeltaNetSpec) -> None:
        super().__init__()
        key_width, value_width = spec.heads * spec.key_dim, spec.heads * spec.value_dim
        self.spec = spec
        self.q_proj = nn.Linear(d_model, key_width, bias=False)
        self.k_proj = nn.Linear(d_model, key_width, bias=False)
        self.v_proj = nn.Linear(d_model, value_width, bias=False)
        self.a_proj = nn.Linear(d_model, spec.heads, bias=False)
        self.b_proj = nn.Linear(d_model, spec.heads, bias=False)
        self.g_proj = nn.Linear(d_model, value_width, bias=False)
        self.o_proj = nn.Linear(value_width, d_model, bias=False)
        self.q_conv = ShortConvolution(key_width, spec.conv_width)
        self.k_conv = ShortConvolution(key_width, spec.conv_width)
        self.v_conv = ShortConvolution(value_width, spec.conv_width)
        self.A_log = nn.Parameter(torch.zeros(spec.heads))
        self.dt_bias = nn.Parameter(torch.zeros(spec.heads))
        self.o_norm = GatedRMSNorm(spec.value_dim, spec.output_norm_eps)

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """[B, T, d_model] to the same; `document_ids` int [B, T], non-decreasing."""
        q, k, v = self._mixed_qkv(x, document_ids)
        out, _ = gated_delta_rule(
            q, k, v, self._log_decay(x), self._beta(x), normalize_qk=True, document_ids=document_ids
        )
        gate = self.g_proj(x).unflatten(-1, (self.spec.heads, self.spec.value_dim))
        return self.o_proj(self.o_norm(out, gate).flatten(2))

    def _mixed_qkv(self, x: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, T, H, K] and v [B, T, H, V]; one convolution over all channels, as it is one in each."""
        projected = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        weight = torch.cat((self.q_conv.weight, self.k_conv.weight, self.v_conv.weight))
        mixed = short_convolution(projected, weight, document_ids=document_ids)
        heads, key_dim, value_dim = self.spec.heads, self.spec.key_dim, self.spec.value_dim
        q, k, v = mixed.split((heads * key_dim, heads * key_dim, heads * value_dim), dim=-1)
        return (
            q.unflatten(-1, (heads, key_dim)),
            k.unflatten(-1, (heads, key_dim)),
            v.unflatten(-1, (heads, value_dim)),
        )

    def _log_decay(self, x: Tensor) -> Tensor:
        """`-exp(A_log) * softplus(a_proj x + dt_bias)`, [B, T, H], in float32 also when the model is bfloat16."""
        dtype = accumulation_dtype(x.dtype)
        return -self.A_log.to(dtype).exp() * F.softplus(self.a_proj(x).to(dtype) + self.dt_bias)

    def _beta(self, x: Tensor) -> Tensor:
        """Writing strength [B, T, H]; the sigmoid stays in the model's dtype, as in the released model."""
        beta = self.b_proj(x).sigmoid()
        return 2 * beta if self.spec.negative_eigenvalues else beta
