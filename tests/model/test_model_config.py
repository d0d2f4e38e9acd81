"""Presets, overrides and parameter counts."""

from __future__ import annotations

import pytest

from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, SwiGLUSpec
from trainer.model.count import count_by_part, count_parameters, parameter_shapes
from trainer.model.presets import PRESETS, model_config


def test_published_models_have_their_published_size() -> None:
    assert count_parameters(model_config("olmo_hybrid_7b")) == 7_430_870_688
    assert count_parameters(model_config("olmo3_7b")) == 7_298_617_344


LADDER = {"1m": 1e6, "15m": 15e6, "60m": 60e6, "190m": 190e6, "600m": 600e6, "1b": 1e9}


@pytest.mark.parametrize("rung", LADDER)
def test_ladder_has_the_sizes_of_its_names(rung: str) -> None:
    """Counted whole; both families within 3% of the name and, 7B aside, within 1% of one another."""
    hybrid, baseline = (count_parameters(model_config(f"{family}_{rung}")) for family in ("olmo_hybrid", "olmo3"))
    assert hybrid == pytest.approx(LADDER[rung], rel=0.03)
    assert baseline == pytest.approx(hybrid, rel=0.01)


def test_ladder_keeps_the_shape_of_the_7b() -> None:
    for name, preset in PRESETS.items():
        assert preset.pattern == ("GGGA" if name.startswith("olmo_hybrid") else "SSSA")
        assert preset.layers % 4 == 0
        if not name.endswith(("1m", "tiny")):
            assert preset.d_model == 128 * preset.heads
        parts = count_by_part(preset.spec())
        real_vocabulary = preset.vocab_size == 100352
        assert real_vocabulary or parts["embedding"] < 0.1 * sum(parts.values()) or name.endswith(("1m", "tiny"))
        assert not real_vocabulary or parts["embedding"] + parts["head"] < 0.5 * sum(parts.values())


def test_tiny_is_tiny() -> None:
    assert count_parameters(model_config("olmo_hybrid_tiny")) < 100_000


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up_to_the_whole(name: str) -> None:
    spec = model_config(name)
    assert sum(count_by_part(spec).values()) == count_parameters(spec)


def test_7b_is_laid_out_as_published() -> None:
    spec = model_config("olmo_hybrid_7b")
    assert len(spec.blocks) == 32
    for index, (mixer, ffn) in enumerate(spec.blocks):
        is_attention = index % 4 == 3
        assert mixer.norm_placement == ffn.norm_placement == ("post" if is_attention else "pre")
        expected = AttentionSpec(30, 128, 500_000.0) if is_attention else GatedDeltaNetSpec(30, 96, 192)
        assert mixer.op == expected
        assert ffn.op == SwiGLUSpec(11008)


def test_olmo3_slides_but_for_each_fourth_layer() -> None:
    windows = [block[0].op.window for block in model_config("olmo3_7b").blocks]
    assert windows == [4096, 4096, 4096, None] * 8


def test_overrides_replace_single_fields() -> None:
    spec = model_config("olmo_hybrid_tiny", {"vocab_size": 512, "layers": 2, "pattern": "GA", "rope_theta": None})
    assert spec.vocab_size == 512
    assert [type(block[0].op) for block in spec.blocks] == [GatedDeltaNetSpec, AttentionSpec]
    assert spec.blocks[1][0].op.rope_theta is None
    assert parameter_shapes(spec)["embedding.weight"] == (512, 32)


def test_specs_are_values() -> None:
    assert model_config("olmo_hybrid_1m", {}) == model_config("olmo_hybrid_1m")
    assert hash(model_config("olmo_hybrid_1m")) == hash(model_config("olmo_hybrid_1m", None))


def test_unknown_model_lists_the_models() -> None:
    with pytest.raises(ValueError, match=r"olmo_hybrid_2b.*olmo_hybrid_7b.*olmo_hybrid_1m, olmo_hybrid_tiny, olmo3_7b"):
        model_config("olmo_hybrid_2b", {})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 3}, r"no field 'depth'; fields are: d_model, mlp_dim, heads, layers"),
        ({"layers": "four"}, r"layers must be int, got 'four'"),
        ({"layers": True}, r"layers must be int, got True"),
        ({"layers": 2.0}, r"layers must be int, got 2\.0"),
        ({"rope_theta": "none"}, r"rope_theta must be float \| null"),
        ({"layers": 0}, r"layers must be at least 1"),
        ({"pattern": "GGX"}, r"letters G, A and S, got 'GGX'"),
        ({"pattern": ""}, r"letters G, A and S"),
        ({"heads": 3}, r"d_model must be a multiple of 4 x heads = 12, got 32"),
        ({"rope_theta": 0}, r"rope_theta must be positive"),
        ({"norm_eps": 0.0}, r"norm_eps must be positive"),
    ],
)
def test_bad_override_says_what_is_wrong(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config("olmo_hybrid_tiny", overrides)
