"""Text from a model, as token ids: greedy or sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.decoding import CachedModel
from trainer.model.transformer import HybridModel


@torch.no_grad()
def generate(
    model: HybridModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    eos_id: int = -1,
) -> Tensor:
    """Continue each row of `tokens` by `max_new_tokens`.

    Args:
        tokens: int64 [B, T], T >= 1, on the model's device; rows of one length.
        temperature: 0 takes the likeliest token, else tokens are drawn from softmax(logits / temperature).
        seed: of the draws; the same seed, device and versions draw the same tokens.
        eos_id: a row that has drawn it goes on with nothing else; -1: none ends a row.

    Returns:
        int64 [B, T + max_new_tokens].

    Raises:
        ValueError: no token to start from, or a negative number of tokens or temperature.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must be [B, T] with at least one token in a row, got {tuple(tokens.shape)}")
    if max_new_tokens < 0 or temperature < 0:
        raise ValueError(f"neither may be negative: max_new_tokens {max_new_tokens}, temperature {temperature}")
    rows, length = tokens.shape
    result = torch.cat((tokens, tokens.new_full((rows, max_new_tokens), eos_id)), dim=1)
    cached = CachedModel(model, capacity=length + max_new_tokens)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    ended = torch.zeros(rows, dtype=torch.bool, device=tokens.device)
    for position in range(length, length + max_new_tokens):
        logits = cached.prefill(tokens) if position == length else cached.step(result[:, position - 1])
        result[:, position] = torch.where(ended, eos_id, _draw(logits, temperature, generator))
        ended |= result[:, position] == eos_id
        if eos_id >= 0 and ended.all():
            break
    return result


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token a row: int64 [B] of logits [B, vocab]."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
