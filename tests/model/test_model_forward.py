"""Causality, packing, loss, initial weights and sharding of the model itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainer.model.attention import attention_mask
from trainer.model.loss import IGNORE_INDEX, cross_entropy
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

SPEC = model_config("olmo_hybrid_tiny")


def build(seed: int = 1, dtype: torch.dtype = torch.float32, **overrides: object) -> HybridModel:
    model = HybridModel(model_config("olmo_hybrid_tiny", overrides))
    model.init_weights(seed)
    return model.to(dtype)


def tokens_of(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(SPEC.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_logits_do_not_depend_on_later_tokens() -> None:
    model, tokens = build(dtype=torch.float64), tokens_of(100)
    changed = torch.cat((tokens[:, :70], tokens_of(30, seed=1)), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :70], model(changed)[:, :70], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(model(tokens)[:, 70:], model(changed)[:, 70:])


@pytest.mark.parametrize("pattern", ["GGGA", "SSSA"])
def test_packed_documents_have_the_logits_they_have_alone(pattern: str) -> None:
    model, tokens = build(dtype=torch.float64, pattern=pattern, window=16), tokens_of(100)
    lengths, names = (5, 64, 1, 30), torch.tensor([9, 2, 9, 4])
    ids = torch.repeat_interleave(names, torch.tensor(lengths))[None]
    with torch.no_grad():
        alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
        # Not nearer: the angles are float32, and a document packed behind others is turned by larger ones.
        torch.testing.assert_close(model(tokens, ids), alone, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(tokens), alone, rtol=1e-2, atol=1e-3)


def test_one_document_is_as_no_documents() -> None:
    model, tokens = build(dtype=torch.float64), tokens_of(70, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, torch.full_like(tokens, 3)), model(tokens), rtol=1e-10, atol=1e-10)


def test_window_counts_the_current_token() -> None:
    mask = attention_mask(4, 2, None, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert attention_mask(4, 4, None, torch.device("cpu")) is None


def test_same_step_twice_has_the_same_bits() -> None:
    model, tokens = build(), tokens_of(130, batch=2)
    results = []
    for _ in range(2):
        model.zero_grad()
        loss = model.loss(tokens, tokens.roll(-1, 1), 260, 1e-5)
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (first_loss, first), (second_loss, second) = results
    assert torch.equal(first_loss, second_loss)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_parameter_gets_a_gradient() -> None:
    model, tokens = build(), tokens_of(40)
    model.loss(tokens, tokens.roll(-1, 1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_few_steps_learn_a_repeating_text() -> None:
    model = build()
    text = torch.tensor(list(b"the same words again and again. " * 4))[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.loss(text[:, :-1], text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(SPEC.vocab_size)) < 0.1
    assert losses[-1] < losses[0] / 2


def test_cross_entropy_equals_torch_and_adds_z_loss() -> None:
    logits = torch.randn(2, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 2, IGNORE_INDEX, 0, 10, IGNORE_INDEX]]).repeat(2, 1)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(cross_entropy(logits, targets), plain)
    lse = logits.logsumexp(-1)[targets != IGNORE_INDEX]
    expected = (8 * plain + 0.1 * lse.square().sum()) / 12
    actual = cross_entropy(logits, targets, denominator=12, z_loss=0.1)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_cross_entropy_of_nothing_is_zero() -> None:
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3), IGNORE_INDEX), z_loss=1e-5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_masked_targets_count_in_a_given_denominator() -> None:
    model, tokens = build(), tokens_of(20)
    targets = tokens.roll(-1, 1).masked_fill(torch.arange(20) % 2 == 0, IGNORE_INDEX)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(tokens, targets, 20), model.loss(tokens, targets) / 2)


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(5)
    first = build(seed=1).state_dict()
    torch.manual_seed(6)
    again, other = build(seed=1).state_dict(), build(seed=2).state_dict()
    deeper = build(seed=1, layers=8).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert all(torch.equal(deeper[name], tensor) for name, tensor in first.items())
    drawn = [name for name in first if not name.endswith("norm.weight")]
    assert not any(torch.equal(other[name], first[name]) for name in drawn)
    assert len({first[name].flatten()[0].item() for name in drawn}) == len(drawn)


def test_meta_then_materialised_equals_built_in_place() -> None:
    with torch.device("meta"):
        model = HybridModel(SPEC)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu").init_weights(1)
    expected = build().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens_of(9)), build()(tokens_of(9)))


@pytest.fixture
def lone_gang():
    """A process group of this process alone, without a port."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model: HybridModel, mesh, **options) -> HybridModel:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def test_sharded_model_has_the_loss_and_gradients_of_the_whole(lone_gang) -> None:
    whole, tokens = build(), tokens_of(66)
    sharded = shard(build(), lone_gang)
    losses = [model.loss(tokens, tokens.roll(-1, 1), 66, 1e-5) for model in (whole, sharded)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*(loss.detach() for loss in losses))
    gradients = {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}
    assert all(torch.equal(gradients[name], p.grad) for name, p in whole.named_parameters())


def test_weights_can_be_drawn_after_sharding(lone_gang) -> None:
    with torch.device("meta"):
        model = HybridModel(SPEC)
    shard(model, lone_gang).to_empty(device="cpu")
    model.init_weights(1)
    expected = build().state_dict()
    assert all(torch.equal(p.full_tensor(), expected[name]) for name, p in model.named_parameters())


def test_mixed_precision_sharding_computes_in_bfloat16(lone_gang) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, tokens = shard(build(), lone_gang, mp_policy=policy), tokens_of(66)
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    loss = cross_entropy(logits, tokens.roll(-1, 1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad.full_tensor()).all() for p in model.parameters())
