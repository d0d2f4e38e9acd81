"""Generation with caches against the model without."""

from __future__ import annotations

import pytest
import torch

from trainer.model.decoding import CachedModel
from trainer.model.generate import generate
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

# Hybrid with RoPE, hybrid without position embedding, and sliding windows shorter than what is generated.
MODELS = {
    "rope": {},
    "nope": {"rope_theta": None},
    "window": {"pattern": "SSSA", "window": 6},
    "mixed": {"pattern": "GSGA", "window": 5},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> HybridModel:
    model = HybridModel(model_config("olmo_hybrid_tiny", MODELS[request.param]))
    model.init_weights(1)
    return model.double()


def prompt(model: HybridModel, length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(model.spec.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [1, 3, 20])
def test_cached_logits_are_the_uncached_ones(model: HybridModel, length: int) -> None:
    tokens = prompt(model, length + 12)
    with torch.no_grad():
        whole = model(tokens)[:, length - 1 :]
        cached = CachedModel(model, capacity=length + 12)
        logits = [cached.prefill(tokens[:, :length]), *(cached.step(tokens[:, t]) for t in range(length, length + 12))]
    torch.testing.assert_close(torch.stack(logits, dim=1), whole, rtol=1e-9, atol=1e-9)


def test_greedy_takes_the_likeliest_token_each_time(model: HybridModel) -> None:
    tokens = prompt(model, 4)
    generated = generate(model, tokens, 10)
    assert generated.shape == (2, 14)
    assert torch.equal(generated[:, :4], tokens)
    with torch.no_grad():
        assert torch.equal(model(generated)[:, 3:-1].argmax(-1), generated[:, 4:])


@pytest.fixture
def small_model() -> HybridModel:
    model = HybridModel(model_config("olmo_hybrid_tiny"))
    model.init_weights(1)
    return model


def test_the_seed_decides_what_is_drawn(small_model: HybridModel) -> None:
    tokens = prompt(small_model, 3)
    first, again, other = (generate(small_model, tokens, 8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_low_temperature_is_greedy(small_model: HybridModel) -> None:
    tokens = prompt(small_model, 3)
    assert torch.equal(generate(small_model, tokens, 5, temperature=1e-6), generate(small_model, tokens, 5))


def test_a_row_that_ended_says_nothing_more(small_model: HybridModel) -> None:
    tokens = prompt(small_model, 3)
    free = generate(small_model, tokens, 8)
    eos = int(free[0, 5])
    ended = generate(small_model, tokens, 8, eos_id=eos)
    for row, reference in zip(ended.tolist(), free.tolist(), strict=True):
        stop = next((i for i in range(3, 11) if reference[i] == eos), 11)
        assert row == reference[: stop + 1] + [eos] * (11 - stop - 1)


def test_nothing_to_generate_and_wrong_arguments(small_model: HybridModel) -> None:
    tokens = prompt(small_model, 3)
    assert torch.equal(generate(small_model, tokens, 0), tokens)
    with pytest.raises(ValueError, match="at least one token"):
        generate(small_model, tokens[:, :0], 1)
    with pytest.raises(ValueError, match="temperature"):
        generate(small_model, tokens, 1, temperature=-1.0)
