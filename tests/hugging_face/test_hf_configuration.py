"""config.json both ways: what transformers builds from it, what it contradicts, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from trainer.hugging_face.configuration import (
    TextSettings,
    contradictions,
    from_config,
    generation_config,
    text_settings,
    to_config,
)
from trainer.hugging_face.errors import HuggingFaceError
from trainer.model.config import AttentionSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.presets import PRESETS, model_config

TEXT = TextSettings(max_position_embeddings=64, eos_token_id=1)
TINY = model_config("olmo_hybrid_tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back(name: str) -> None:
    spec = model_config(name)
    config = to_config(spec, TEXT)
    assert from_config(config) == spec
    assert text_settings(config) == TEXT
    assert contradictions(config, spec) == []


@pytest.mark.parametrize("theta", [500_000.0, 10_000.0, None])
def test_config_always_says_the_position_embedding(theta: float | None) -> None:
    config = to_config(model_config("olmo_hybrid_7b", {"rope_theta": theta}), TEXT)
    assert config["rope_parameters"] == {"rope_theta": theta, "rope_type": "default"}
    assert from_config(config).blocks[3][0].op.rope_theta == theta
    built = transformers.OlmoHybridConfig(**config)
    assert built.rope_parameters["rope_theta"] == theta


def test_config_of_the_7b_is_the_published_one() -> None:
    config = to_config(model_config("olmo_hybrid_7b"), TEXT)
    assert config["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 8
    assert (config["linear_key_head_dim"], config["linear_value_head_dim"]) == (96, 192)
    published = transformers.OlmoHybridConfig().to_dict()
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "linear_key_head_dim", "linear_conv_kernel_dim", "rms_norm_eps", "layer_types"):  # fmt: skip
        assert config[key] == published[key], key


def test_olmo3_says_what_transformers_would_take_otherwise() -> None:
    config = to_config(model_config("olmo3_7b"), TEXT)
    assert (config["rms_norm_eps"], config["vocab_size"], config["sliding_window"]) == (1e-6, 100352, 4096)
    assert config["layer_types"] == (["sliding_attention"] * 3 + ["full_attention"]) * 8
    built = transformers.Olmo3Config(**config)
    assert {rope["rope_theta"] for rope in built.rope_parameters.values()} == {500_000.0}


def test_absent_keys_mean_what_transformers_takes_them_for() -> None:
    config = to_config(model_config("olmo_hybrid_7b"), TEXT)
    for key in ("rope_parameters", "rms_norm_eps", "layer_types", "linear_key_head_dim", "linear_num_key_heads"):
        del config[key]
    assert from_config(config) == model_config("olmo_hybrid_7b", {"rope_theta": 10_000.0})
    config = to_config(model_config("olmo3_7b"), TEXT)
    for key in ("rope_parameters", "rms_norm_eps", "layer_types", "sliding_window"):
        del config[key]
    assert from_config(config) == model_config("olmo3_7b", {"norm_eps": 1e-5})


def test_older_spelling_of_rope_is_read() -> None:
    config = to_config(model_config("olmo3_7b"), TEXT)
    del config["rope_parameters"]
    assert from_config({**config, "rope_theta": 250_000}).blocks[0][0].op.rope_theta == 250_000.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1; the models here have 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attention_bias": True}, "attention_bias"),
        ({"linear_num_value_heads": 4}, "linear_num_value_heads is 4"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "default type"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, not '32'"),
        ({"num_hidden_layers": 5}, "layer_types must name 5 layers"),
    ],
)
def test_what_the_models_here_do_not_have_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(HuggingFaceError, match=said):
        from_config({**to_config(TINY, TEXT), **changes})


def test_contradictions_name_the_keys_and_can_be_allowed() -> None:
    other = model_config("olmo_hybrid_tiny", {"mlp_dim": 64, "rope_theta": None})
    problems = contradictions(to_config(other, TEXT), TINY)
    assert len(problems) == 2
    assert "intermediate_size is 64 there, 96 in the model" in problems
    assert contradictions(to_config(other, TEXT), TINY, ("rope_parameters", "intermediate_size")) == []


def test_models_that_no_class_can_express_are_refused() -> None:
    attention = AttentionSpec(heads=2, head_dim=16, rope_theta=None)
    two_mixers = ModelSpec(32, 64, (SublayerSpec(attention, "post"), SublayerSpec(attention, "post")))
    post_norm_everywhere = ModelSpec(
        32, 64, tuple(replace(sublayer, norm_placement="post") for sublayer in TINY.sublayers)
    )
    mixed = ModelSpec(32, 64, (*TINY.sublayers, SublayerSpec(attention, "post"), SublayerSpec(SwiGLUSpec(8), "post")))
    windowed = model_config("olmo_hybrid_tiny", {"pattern": "GGGS"})
    no_rope = model_config("olmo3_1m", {"rope_theta": None})
    for spec in (two_mixers, post_norm_everywhere, mixed, windowed, no_rope):
        with pytest.raises(HuggingFaceError, match="ForCausalLM has"):
            to_config(spec, TEXT)


def test_generation_config_holds_the_tokens_that_are_known() -> None:
    assert generation_config(TEXT) == {"_from_model_config": True, "eos_token_id": 1}
