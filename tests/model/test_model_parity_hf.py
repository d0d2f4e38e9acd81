"""The model against transformers' OlmoHybridForCausalLM and Olmo3ForCausalLM with the same random weights."""

from __future__ import annotations

import pytest
import torch

from trainer.model.attention import Attention
from trainer.model.config import ModelSpec
from trainer.model.gated_deltanet import GatedRMSNorm
from trainer.model.hf import from_hugging_face, hf_config, hf_names, to_hugging_face
from trainer.model.norms import RMSNorm
from trainer.model.presets import model_config
from trainer.model.rope import rotary_tables, rotate
from trainer.model.transformer import HybridModel

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")

LENGTHS = (1, 63, 64, 65, 130)
TOLERANCE = 1e-4


def random_weights(model: HybridModel, seed: int = 3) -> None:
    """Weights far from the initial ones, so that a norm left out or a scale forgotten shows."""
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.ndim == 2:
                parameter.mul_(5.0)


def pair(spec: ModelSpec) -> tuple[HybridModel, torch.nn.Module]:
    ours = HybridModel(spec)
    random_weights(ours)
    values = hf_config(spec, max_position_embeddings=256, eos_token_id=1, pad_token_id=None)
    theirs = transformers.OlmoHybridForCausalLM(transformers.OlmoHybridConfig(**values))
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), spec, fuse_convolutions=True), strict=True)
    return ours, theirs


def tokens_of(spec: ModelSpec, length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(spec.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("rope_theta", [500_000.0, None], ids=["rope", "nope"])
@pytest.mark.parametrize("name", ["olmo_hybrid_tiny", "olmo_hybrid_1m"])
def test_logits_equal_transformers(name: str, rope_theta: float | None) -> None:
    spec = model_config(name, {"rope_theta": rope_theta})
    ours, theirs = pair(spec)
    for length in LENGTHS:
        tokens = tokens_of(spec, length)
        with torch.no_grad():
            difference = (ours(tokens) - theirs(tokens).logits).abs().max().item()
        assert difference <= TOLERANCE, length


@pytest.mark.parametrize("rope_theta", [500_000.0, None], ids=["rope", "nope"])
def test_loss_and_gradients_equal_transformers(rope_theta: float | None) -> None:
    spec = model_config("olmo_hybrid_tiny", {"rope_theta": rope_theta})
    ours, theirs = pair(spec)
    tokens = tokens_of(spec, 130)
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    loss, their_loss = ours.loss(tokens, targets), theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    their_loss.backward()
    their_gradients = from_hugging_face({name: p.grad for name, p in theirs.named_parameters()}, spec)
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name]
        scale = expected.abs().max().clamp(min=1e-3).item()
        assert (parameter.grad - expected).abs().max().item() <= TOLERANCE * scale, name


def test_every_released_name_is_one_of_ours() -> None:
    """The names of the checkpoint on disk: 18 tensors a Gated DeltaNet layer, 11 an attention layer, and three."""
    spec = model_config("olmo_hybrid_7b")
    names = list(hf_names(spec).values())
    assert len(set(names)) == len(names) == 24 * 18 + 8 * 11 + 3
    assert "model.layers.0.linear_attn.q_conv1d.weight" in names
    assert "model.layers.0.input_layernorm.weight" in names
    assert "model.layers.3.self_attn.q_norm.weight" in names
    assert "model.layers.3.post_feedforward_layernorm.weight" in names
    assert "model.layers.3.input_layernorm.weight" not in names


def test_saved_by_transformers_and_read_back(tmp_path) -> None:
    """save_pretrained writes legacy spellings and cuts the convolution in equal parts; all bits come back."""
    safetensors = pytest.importorskip("safetensors.torch")
    spec = model_config("olmo_hybrid_tiny")
    ours, theirs = pair(spec)
    theirs.save_pretrained(tmp_path)
    loaded = from_hugging_face(safetensors.load_file(tmp_path / "model.safetensors"), spec)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.state_dict().items())


def test_files_of_ours_are_loaded_whole_by_transformers(tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    spec = model_config("olmo_hybrid_tiny", {"rope_theta": None})
    ours, _ = pair(spec)
    values = hf_config(spec, max_position_embeddings=256, eos_token_id=1, pad_token_id=None)
    transformers.OlmoHybridConfig(**values).save_pretrained(tmp_path)
    state = {name: tensor.contiguous() for name, tensor in to_hugging_face(ours.state_dict(), spec).items()}
    safetensors.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = transformers.OlmoHybridForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = tokens_of(spec, 65)
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max().item() <= TOLERANCE


def test_olmo3_logits_equal_transformers() -> None:
    spec = model_config(
        "olmo3_7b", {"d_model": 32, "mlp_dim": 48, "heads": 2, "layers": 4, "vocab_size": 64, "window": 8}
    )
    ours = HybridModel(spec)
    random_weights(ours)
    config = transformers.Olmo3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        sliding_window=8, rms_norm_eps=1e-6, pad_token_id=None, eos_token_id=1, max_position_embeddings=256,
    )  # fmt: skip
    theirs = transformers.Olmo3ForCausalLM(config)
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), spec), strict=True)
    tokens = tokens_of(spec, 40)
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max().item() <= TOLERANCE


def bfloat16(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_norms_have_the_bits_of_transformers_in_bfloat16() -> None:
    """The order of casts is what differs between the two norms, and it shows in bfloat16 only."""
    x, gate, weight = bfloat16(50, 24), bfloat16(50, 24, seed=1), bfloat16(24, seed=2)
    for ours, theirs, inputs in (
        (RMSNorm(24, 1e-6), modeling.OlmoHybridRMSNorm(24, 1e-6), (x,)),
        (GatedRMSNorm(24, 1e-5), modeling.OlmoHybridRMSNormGated(24, 1e-5), (x, gate)),
    ):
        for module in (ours, theirs):
            module.weight.data = weight.clone()
        assert torch.equal(ours(*inputs), theirs(*inputs))


def test_rotation_has_the_bits_of_transformers_in_bfloat16() -> None:
    q = bfloat16(1, 2, 33, 16)
    cos, sin = rotary_tables(33, 16, 500_000.0, q.device)
    assert cos.dtype == torch.float32
    wide_cos, wide_sin = (torch.cat((table, table), dim=-1)[None] for table in (cos, sin))
    expected, _ = modeling.apply_rotary_pos_emb(q, q, wide_cos, wide_sin)
    assert torch.equal(rotate(q, cos, sin), expected)


def test_bfloat16_model_stays_near_transformers() -> None:
    """Kernels round differently in bfloat16, so this is a bound, not an equality: far below the logits' spread."""
    spec = model_config("olmo_hybrid_tiny")
    ours, theirs = pair(spec)
    tokens = tokens_of(spec, 65)
    with torch.no_grad():
        exact = ours(tokens)
        ours_low, theirs_low = ours.bfloat16()(tokens), theirs.bfloat16()(tokens).logits
    assert ours_low.dtype == torch.bfloat16
    own_error = (ours_low - exact).square().mean().sqrt()
    their_error = (theirs_low - exact).square().mean().sqrt()
    assert own_error <= 1.25 * their_error


def test_attention_module_keeps_no_state_beside_weights() -> None:
    spec = model_config("olmo_hybrid_tiny").sublayers[6].op
    assert not list(Attention(32, spec, 1e-6).buffers())
