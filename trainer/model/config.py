"""What a model is made of: a flat list of residual sublayers. Imports no torch, so that a configuration checks at once.

One schema for the hybrids of the field: each sublayer is a mixer (over tokens) or a feed-forward network (over
channels) with a norm before or after it. A block is a mixer with the feed-forward networks up to the next mixer; it is
the unit that FSDP wraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormPlacement = Literal["pre", "post"]
NormKind = Literal["rms"]


@dataclass(frozen=True)
class AttentionSpec:
    """Causal multi-head attention with RMSNorm over the full width of q and of k, before the heads are split."""

    heads: int
    head_dim: int
    rope_theta: float | None  # None: no position embedding (NoPE)
    window: int | None = None  # tokens seen, the current one included; None: all before


@dataclass(frozen=True)
class GatedDeltaNetSpec:
    """Gated DeltaNet with short convolutions and an output gate."""

    heads: int
    key_dim: int  # of a head
    value_dim: int  # of a head
    conv_width: int = 4
    negative_eigenvalues: bool = True  # beta in (0, 2), not (0, 1)
    output_norm_eps: float = (
        1e-5  # unlike the other norms': fla's default, which the released weights were trained with
    )


@dataclass(frozen=True)
class SwiGLUSpec:
    """`down(silu(gate(x)) * up(x))`."""

    hidden_dim: int


MixerSpec = AttentionSpec | GatedDeltaNetSpec


@dataclass(frozen=True)
class SublayerSpec:
    """`x + op(norm(x))` if the placement is pre, `x + norm(op(x))` if post."""

    op: MixerSpec | SwiGLUSpec
    norm_placement: NormPlacement
    norm_kind: NormKind = "rms"

    @property
    def is_mixer(self) -> bool:
        return isinstance(self.op, MixerSpec)


@dataclass(frozen=True)
class ModelSpec:
    """A decoder: embedding, sublayers, final norm, untied head."""

    d_model: int
    vocab_size: int  # padded; of embedding and head
    sublayers: tuple[SublayerSpec, ...]
    norm_eps: float = 1e-6

    @property
    def blocks(self) -> tuple[tuple[SublayerSpec, ...], ...]:
        """The sublayers cut before each mixer."""
        starts = [i for i, sublayer in enumerate(self.sublayers) if i == 0 or sublayer.is_mixer]
        ends = [*starts[1:], len(self.sublayers)]
        return tuple(self.sublayers[start:end] for start, end in zip(starts, ends, strict=True))
