"""Compilation, recomputation and accumulation change how a step is computed, not what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kernels.documents import cumulative_lengths
from trainer.model.execution import Execution
from trainer.model.loss import unit_gradient
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel
from trainer.parallel.gang import Gang
from trainer.parallel.layout import Layout
from trainer.parallel.sharded import ShardedModel

SPEC = model_config("olmo_hybrid_tiny", {"pattern": "GS", "layers": 2, "window": 6})
TOKENS = torch.randint(SPEC.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
DOCUMENTS = (torch.arange(16) > 6).long()[None].expand(4, -1)


@pytest.fixture
def gang() -> Iterator[Gang]:
    alone = Gang(1, Layout(0, 1, 1), torch.device("cpu"), dist.HashStore)
    alone.form()
    yield alone
    alone.close()


def gradients(gang: Gang, execution: Execution, micro_batches: int = 2) -> tuple[float, dict[str, Tensor]]:
    """Loss and reduced gradients of one step of a new ShardedModel."""
    model = ShardedModel(lambda: HybridModel(SPEC, execution), gang)
    model.module.init_weights(1)
    total = 0.0
    for index, (tokens, ids) in enumerate(
        zip(TOKENS.chunk(micro_batches), DOCUMENTS.chunk(micro_batches), strict=True)
    ):
        model.accumulate(is_last=index == micro_batches - 1)
        loss = model.module.loss(tokens, tokens.roll(-1, 1), TOKENS.numel(), 1e-5, document_ids=ids)
        loss.backward(unit_gradient(loss.device))
        total += loss.item()
    return total, model.gradients()


@pytest.mark.parametrize("recomputed", ["mlp", "block"])
def test_recomputed_activations_give_the_same_bits(recomputed: str, gang: Gang) -> None:
    loss, expected = gradients(gang, Execution("never"))
    again, actual = gradients(gang, Execution("never", recomputed))
    assert again == loss
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())


def test_recomputation_keeps_less(gang: Gang) -> None:
    def kept(execution: Execution) -> int:
        model = ShardedModel(lambda: HybridModel(SPEC, execution), gang)
        model.module.init_weights(1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model.module.loss(TOKENS, TOKENS, 64, document_ids=DOCUMENTS)
        return sum(sizes)

    assert kept(Execution("never", "block")) < kept(Execution("never", "mlp")) < kept(Execution("never"))


def test_accumulated_micro_batches_are_the_whole_batch(gang: Gang) -> None:
    loss, expected = gradients(gang, Execution("never"), micro_batches=1)
    for micro_batches in (2, 4):
        again, actual = gradients(gang, Execution("never"), micro_batches)
        assert again == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_later_attempt_compiles_nothing(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    loss, expected = gradients(gang, Execution("never"))
    torch._dynamo.reset()
    counters.clear()
    compiled_loss, first = gradients(gang, Execution("always"))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 3  # a block of each kind and the final norm
    assert not counters["graph_break"]
    again, second = gradients(gang, Execution("always"))
    assert counters["stats"]["unique_graphs"] == graphs
    assert again == compiled_loss == pytest.approx(loss, rel=1e-6)
    assert all(torch.equal(second[name], gradient) for name, gradient in first.items())
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


def test_auto_compiles_on_gpus_alone() -> None:
    x = torch.zeros(1)
    assert not Execution().compiles(x)
    assert Execution("always").compiles(x)
    assert not Execution("never").compiles(x)


def test_documents_begin_with_each_row_and_each_change() -> None:
    ids = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert cumulative_lengths(ids).tolist() == [0, 2, 4, 7, 8]
    assert cumulative_lengths(torch.zeros(1, 5, dtype=torch.int64)).tolist() == [0, 5]
    assert cumulative_lengths(ids).dtype == torch.int32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("window", [None, 100])
def test_flash_attention_of_documents_is_the_masked_one_and_repeats_its_bits(window: int | None) -> None:
    from trainer.model.attention import attend
    from trainer.model.context import Context

    torch.use_deterministic_algorithms(True)
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, 300, 2, 64, device="cuda", dtype=torch.bfloat16, generator=generator, requires_grad=True)
        for _ in range(3)
    )
    ids = (torch.arange(300) // 70)[None].expand(2, -1)
    packed = Context(ids.cuda(), cumulative_lengths(ids).cuda())
    results = [attend(q, k, v, window, context) for context in (packed, packed, Context(ids.cuda()))]
    grads = [torch.autograd.grad(out, (q, k, v), torch.ones_like(out)) for out in results]
    assert torch.equal(results[0], results[1])
    assert all(torch.equal(a, b) for a, b in zip(grads[0], grads[1], strict=True))
    torch.testing.assert_close(results[0], results[2], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grads[0], grads[2], rtol=5e-2, atol=5e-2)
