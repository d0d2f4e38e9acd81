"""Logits, loss and gradients against transformers' OlmoHybridForCausalLM and Olmo3ForCausalLM, with the same weights."""

from __future__ import annotations

import hf_parity as parity
import pytest
import torch

from trainer.hugging_face.names import released_names
from trainer.model.presets import model_config


@pytest.mark.parametrize("name", parity.MODELS)
def test_equals_transformers_at_every_length_and_packed(name: str) -> None:
    ours, theirs = parity.pair(parity.spec_of(name))
    found = parity.Differences()
    parity.compare_lengths(ours, theirs, parity.LENGTHS, found)
    parity.compare_packed(ours, theirs, parity.PACKED, found)
    assert found.broken() == [], found


def test_another_position_embedding_breaks_every_bound() -> None:
    """The bounds can tell: RoPE against NoPE, with the same weights."""
    ours, _ = parity.pair(parity.spec_of("olmo_hybrid_1m"))
    _, theirs = parity.pair(parity.spec_of("olmo_hybrid_1m_nope"))
    found = parity.Differences()
    parity.compare_lengths(ours, theirs, (65,), found)
    assert found.broken() == ["logits", "loss", "gradients_relative"]


def test_documents_that_see_one_another_break_every_bound() -> None:
    ours, theirs = parity.pair(parity.spec_of("olmo_hybrid_1m"))
    documents = [parity.tokens_of(ours.spec, length, batch=1) for length in (30, 40)]
    unmasked = parity.our_outcome(ours, torch.cat(documents, dim=1))
    found = parity.Differences()
    found.take("unmasked", unmasked, parity.their_outcome(theirs, documents, ours.spec))
    assert found.broken() == ["logits", "loss", "gradients_relative"]


def test_a_value_that_is_no_number_is_no_equality() -> None:
    assert parity.distance(torch.tensor([float("nan")]), torch.tensor([0.0])) == float("inf")


def test_every_released_name_is_one_of_ours() -> None:
    """The names of the checkpoint on disk: 18 tensors a Gated DeltaNet layer, 11 an attention layer, and three."""
    names = list(released_names(model_config("olmo_hybrid_7b")).values())
    assert len(set(names)) == len(names) == 24 * 18 + 8 * 11 + 3
    for present in (
        "model.layers.0.linear_attn.q_conv1d.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.3.self_attn.q_norm.weight",
        "model.layers.3.post_feedforward_layernorm.weight",
    ):
        assert present in names
    assert "model.layers.3.input_layernorm.weight" not in names


def test_bfloat16_model_stays_near_transformers() -> None:
    """Kernels round differently in bfloat16, so this is a bound, not an equality: far below the logits' spread."""
    spec = model_config("olmo_hybrid_tiny")
    ours, theirs = parity.pair(spec)
    tokens = parity.tokens_of(spec, 65)
    with torch.no_grad():
        exact = ours(tokens)
        ours_low, theirs_low = ours.bfloat16()(tokens), theirs.bfloat16()(tokens).logits
    assert ours_low.dtype == torch.bfloat16
    own_error = (ours_low - exact).square().mean().sqrt()
    their_error = (theirs_low - exact).square().mean().sqrt()
    assert own_error <= 1.25 * their_error
