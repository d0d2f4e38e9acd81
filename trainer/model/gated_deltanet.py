"""The Gated DeltaNet mixer of Olmo Hybrid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.ops import delta_gate, gated_delta_rule, gated_rms_norm, short_convolutions
from trainer.model.config import GatedDeltaNetSpec
from trainer.model.context import Context


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

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, T, d_model] to the same."""
        document_ids = context.document_ids
        q, k, v = self.split_heads(
            short_convolutions(self.project_qkv(x), self.convolution_weights, document_ids=document_ids)
        )
        log_decay, beta = self.gates(x)
        out, _ = gated_delta_rule(q, k, v, log_decay, beta, normalize_qk=True, document_ids=document_ids)
        return self.project_output(out, x)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, T, H * K] and v [B, T, H * V], before the convolutions."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    @property
    def convolution_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of q, k and v, [channels, W] each."""
        return self.q_conv.weight, self.k_conv.weight, self.v_conv.weight

    def split_heads(self, qkv: Sequence[Tensor]) -> list[Tensor]:
        """q, k [..., H, K] and v [..., H, V] of tensors [..., H * dim]."""
        return [x.unflatten(-1, (self.spec.heads, -1)) for x in qkv]

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay, at least float32, and writing strength, both [B, T, H].

        The sigmoid stays in the model's dtype, as in the released model.
        """
        beta = self.b_proj(x).sigmoid()
        if self.spec.negative_eigenvalues:
            beta = 2 * beta
        return delta_gate(self.a_proj(x), self.A_log, self.dt_bias), beta

    def project_output(self, out: Tensor, x: Tensor) -> Tensor:
        """The delta rule's output [B, T, H, V], normed and gated by what x [B, T, d_model] says, to [B, T, d_model]."""
        gate = self.g_proj(x).unflatten(-1, (self.spec.heads, self.spec.value_dim))
        return self.o_proj(self.o_norm(out, gate).flatten(2))
