"""Parts of the model, bit for bit those of transformers where rounding shows; whole models: tests/hugging_face."""

from __future__ import annotations

import pytest
import torch

from trainer.model.attention import Attention
from trainer.model.gated_deltanet import GatedRMSNorm
from trainer.model.norms import RMSNorm
from trainer.model.presets import model_config
from trainer.model.rope import rotary_tables, rotate

modeling = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")


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


def test_attention_module_keeps_no_state_beside_weights() -> None:
    spec = model_config("olmo_hybrid_tiny").sublayers[6].op
    assert not list(Attention(32, spec, 1e-6).buffers())
