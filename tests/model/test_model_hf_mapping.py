"""Import and export of Hugging Face state dicts: spellings, refusals, configuration."""

from __future__ import annotations

import pytest
import torch

from trainer.model.config import AttentionSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.hf import from_hugging_face, hf_config, to_hugging_face
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

SPEC = model_config("olmo_hybrid_tiny")
CONFIG = {"max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": None}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    model = HybridModel(SPEC)
    model.init_weights(1)
    return model.state_dict()


@pytest.mark.parametrize("fuse", [False, True])
def test_round_trip_keeps_every_bit(state: dict[str, torch.Tensor], fuse: bool) -> None:
    back = from_hugging_face(to_hugging_face(state, SPEC, fuse_convolutions=fuse), SPEC)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_convolutions_have_conv1d_shape_on_disk(state: dict[str, torch.Tensor]) -> None:
    exported = to_hugging_face(state, SPEC)
    assert exported["model.layers.0.linear_attn.q_conv1d.weight"].shape == (24, 1, 4)
    fused = to_hugging_face(state, SPEC, fuse_convolutions=True)
    assert fused["model.layers.0.linear_attn.conv1d.weight"].shape == (96, 1, 4)
    assert len(exported) - len(fused) == 3 * 2


def test_spellings_of_olmo_core_and_of_save_pretrained_are_accepted(state: dict[str, torch.Tensor]) -> None:
    spelled = {}
    for name, tensor in to_hugging_face(state, SPEC).items():
        name = name.replace("linear_attn.o_proj", "linear_attn.out_proj").replace(
            "linear_attn.o_norm", "linear_attn.norm"
        )
        name = name.replace("input_layernorm", "attention_layer_norm")
        spelled[name.replace("post_attention_layernorm", "feedforward_layer_norm")] = tensor
    assert not any("o_norm" in name or "input_layernorm" in name for name in spelled)
    back = from_hugging_face(spelled, SPEC)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_missing_unknown_and_misshapen_weights_are_refused(state: dict[str, torch.Tensor]) -> None:
    theirs = to_hugging_face(state, SPEC)
    del theirs["model.layers.0.linear_attn.A_log"]
    theirs["model.layers.0.linear_attn.D"] = torch.zeros(2)
    theirs["lm_head.weight"] = torch.zeros(3, 32)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_hugging_face(theirs, SPEC)
    message = str(caught.value)
    assert "missing model.layers.0.linear_attn.A_log" in message
    assert "unknown model.layers.0.linear_attn.D" in message
    assert "lm_head.weight has shape (3, 32), the model (384, 32)" in message


def test_fused_convolution_of_another_model_is_refused(state: dict[str, torch.Tensor]) -> None:
    theirs = to_hugging_face(state, SPEC, fuse_convolutions=True)
    theirs["model.layers.1.linear_attn.conv1d.weight"] = torch.zeros(90, 1, 4)
    with pytest.raises(ValueError, match=r"layers\.1\.linear_attn\.conv1d\.weight has 90 channels, the model 96"):
        from_hugging_face(theirs, SPEC)


def test_export_of_a_partial_state_is_refused(state: dict[str, torch.Tensor]) -> None:
    del state["norm.weight"]
    with pytest.raises(ValueError, match=r"missing norm\.weight"):
        to_hugging_face(state, SPEC)


@pytest.mark.parametrize("theta", [500_000.0, None])
def test_config_always_says_the_position_embedding(theta: float | None) -> None:
    config = hf_config(model_config("olmo_hybrid_7b", {"rope_theta": theta}), **CONFIG)
    assert config["rope_parameters"] == {"rope_theta": theta, "rope_type": "default"}
    assert config["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 8
    assert (config["linear_key_head_dim"], config["linear_value_head_dim"]) == (96, 192)


def test_config_refuses_what_olmo_hybrid_cannot_express() -> None:
    attention = AttentionSpec(heads=2, head_dim=16, rope_theta=None)
    two_mixers = ModelSpec(32, 64, (SublayerSpec(attention, "post"), SublayerSpec(attention, "post")))
    post_norm_everywhere = ModelSpec(32, 64, tuple(SublayerSpec(sublayer.op, "post") for sublayer in SPEC.sublayers))
    mixed = ModelSpec(32, 64, (*SPEC.sublayers, SublayerSpec(attention, "post"), SublayerSpec(SwiGLUSpec(8), "post")))
    windowed = model_config("olmo_hybrid_tiny", {"pattern": "GGGS"})
    for spec in (two_mixers, post_norm_everywhere, mixed, windowed, model_config("olmo3_7b")):
        with pytest.raises(ValueError, match="OlmoHybridForCausalLM has"):
            hf_config(spec, **CONFIG)
