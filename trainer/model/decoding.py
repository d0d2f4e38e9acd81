"""The model with what earlier tokens left in it, so that a further token costs one token's work.

Attention keeps keys and values, as many as its window holds; Gated DeltaNet keeps the last inputs of its convolutions
and one state a head, whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ops import gated_delta_rule, gated_delta_rule_step, short_convolution_step, short_convolutions
from trainer.model.attention import Attention, attend
from trainer.model.context import Context, block_contexts
from trainer.model.gated_deltanet import GatedDeltaNet
from trainer.model.rope import rotary_tables
from trainer.model.transformer import HybridModel, Sublayer


class CachedGatedDeltaNet:
    """A mixer with the inputs of its convolutions [B, W - 1, channels] and its states [B, H, K, V]."""

    def __init__(self, mixer: GatedDeltaNet) -> None:
        self.mixer = mixer

    def prefill(self, x: Tensor, context: Context) -> Tensor:
        """The first tokens, [B, T, d_model] to the same."""
        mixer = self.mixer
        projected, weights = mixer.project_qkv(x), mixer.convolution_weights
        before = weights[0].shape[1] - 1
        self._inputs = F.pad(torch.cat(projected, dim=-1), (0, 0, before, 0))[:, x.shape[1] :]
        q, k, v = mixer.split_heads(short_convolutions(projected, weights))
        out, self._state = gated_delta_rule(q, k, v, *mixer.gates(x), normalize_qk=True, output_final_state=True)
        return mixer.project_output(out, x)

    def step(self, x: Tensor, position: int) -> Tensor:
        """The next token, [B, 1, d_model] to the same."""
        mixer = self.mixer
        projected, weights = mixer.project_qkv(x), mixer.convolution_weights
        mixed, self._inputs = short_convolution_step(torch.cat(projected, -1)[:, 0], torch.cat(weights), self._inputs)
        q, k, v = mixer.split_heads(mixed.split([y.shape[-1] for y in projected], dim=-1))
        log_decay, beta = (gate[:, 0] for gate in mixer.gates(x))
        out, self._state = gated_delta_rule_step(q, k, v, log_decay, beta, self._state, normalize_qk=True)
        return mixer.project_output(out[:, None], x)


class CachedAttention:
    """Attention with the keys and values of the last tokens, [B, slots, H, D]; token i lies in slot i % slots.

    Keys are cached after their rotation, which makes their order irrelevant: once the window is full, a token takes the
    slot of the one that just left it.
    """

    def __init__(self, attention: Attention, capacity: int, device: torch.device) -> None:
        self.attention = attention
        spec = attention.spec
        self._slots = capacity if spec.window is None else min(capacity, spec.window)
        has_rope = spec.rope_theta is not None
        self._tables = rotary_tables(capacity, spec.head_dim, spec.rope_theta, device) if has_rope else (None, None)

    def prefill(self, x: Tensor, context: Context) -> Tensor:
        """The first tokens, [B, T, d_model] to the same."""
        q, k, v = self.attention.project_qkv(x, context.cos, context.sin)
        length = x.shape[1]
        kept = torch.arange(max(0, length - self._slots), length, device=x.device)
        self._k, self._v = (y.new_zeros(len(y), self._slots, *y.shape[2:]) for y in (k, v))
        for cache, new in ((self._k, k), (self._v, v)):
            cache[:, kept % self._slots] = new[:, kept]
        return self.attention.o_proj(attend(q, k, v, self.attention.spec.window, context).flatten(2))

    def step(self, x: Tensor, position: int) -> Tensor:
        """The token at `position`, [B, 1, d_model] to the same."""
        cos, sin = (None if table is None else table[position : position + 1] for table in self._tables)
        q, k, v = self.attention.project_qkv(x, cos, sin)
        slot, filled = position % self._slots, min(position + 1, self._slots)
        self._k[:, slot], self._v[:, slot] = k[:, 0], v[:, 0]
        heads_first = (y.transpose(1, 2) for y in (q, self._k[:, :filled], self._v[:, :filled]))
        return self.attention.o_proj(F.scaled_dot_product_attention(*heads_first).transpose(1, 2).flatten(2))


class CachedModel:
    """A model for rows of one length that grow together, up to `capacity` tokens. Wants no gradients."""

    def __init__(self, model: HybridModel, capacity: int) -> None:
        self.model = model
        self._device = model.embedding.weight.device
        self._position = 0
        self._sublayers = [
            (sublayer, self._cached(sublayer, capacity)) for block in model.blocks for sublayer in block.sublayers
        ]

    def _cached(self, sublayer: Sublayer, capacity: int) -> CachedAttention | CachedGatedDeltaNet | None:
        match sublayer.op:
            case Attention():
                return CachedAttention(sublayer.op, capacity, self._device)
            case GatedDeltaNet():
                return CachedGatedDeltaNet(sublayer.op)
        return None

    def prefill(self, tokens: Tensor) -> Tensor:
        """Take the first tokens, int64 [B, T]; returns the logits after the last one, [B, vocab]."""
        contexts = iter(block_contexts(self.model.spec, tokens, None))
        x = self.model.embedding(tokens)
        for sublayer, cached in self._sublayers:
            x = _residual(sublayer, x, lambda y, cached=cached: cached.prefill(y, next(contexts)))
        self._position = tokens.shape[1]
        return self._logits(x)

    def step(self, tokens: Tensor) -> Tensor:
        """Take one more token a row, int64 [B]; returns the logits after it, [B, vocab]."""
        x = self.model.embedding(tokens[:, None])
        for sublayer, cached in self._sublayers:
            x = _residual(sublayer, x, lambda y, cached=cached: cached.step(y, self._position))
        self._position += 1
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.norm(x[:, -1:]))[:, 0]


def _residual(sublayer: Sublayer, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """What `Sublayer.forward` does, its mixer replaced by `mix`."""
    run = mix if sublayer.is_mixer else sublayer.op
    if sublayer.is_pre_norm:
        return x + run(sublayer.norm(x))
    return x + sublayer.norm(run(x))
