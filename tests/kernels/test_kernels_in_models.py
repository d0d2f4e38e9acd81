"""The operations inside a Gated DeltaNet mixer: one graph under torch.compile, recomputed under checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels import ops
from trainer.model.config import GatedDeltaNetSpec
from trainer.model.context import Context
from trainer.model.gated_deltanet import GatedDeltaNet

pytestmark = pytest.mark.kernels
D_MODEL, LENGTH = 24, 70
PACKED = Context(document_ids=(torch.arange(LENGTH) // 30).expand(2, LENGTH).contiguous())


@pytest.fixture(params=["pytorch", "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU with what runs there; CUDA with Triton, or the CPU made to take Triton, in its interpreter."""
    if request.param == "pytorch":
        return torch.device("cpu")
    pytest.importorskip("triton")
    device = request.getfixturevalue("triton_device")
    monkeypatch.setattr(ops, "runs_triton", lambda x: True)
    monkeypatch.setattr(ops, "implementation_for", lambda device, dtype=torch.bfloat16: "triton")
    return device


def mixer_and_input(device: torch.device) -> tuple[GatedDeltaNet, torch.Tensor]:
    torch.manual_seed(0)
    mixer = GatedDeltaNet(D_MODEL, GatedDeltaNetSpec(heads=2, key_dim=16, value_dim=16))
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(device), torch.randn(2, LENGTH, D_MODEL).to(device).requires_grad_()


def on(device: torch.device, context: Context) -> Context:
    return Context(*(None if x is None else x.to(device) for x in context))


def output_and_gradients(run, mixer: GatedDeltaNet, x: torch.Tensor) -> list[torch.Tensor]:
    y = run(x)
    return [y, *torch.autograd.grad(y, [x, *mixer.parameters()], torch.ones_like(y))]


@pytest.mark.parametrize("context", [Context(), PACKED], ids=["one document", "packed"])
def test_a_mixer_is_one_graph(context: Context, device: torch.device) -> None:
    mixer, x = mixer_and_input(device)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(mixer)(x, on(device, context))
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


@pytest.mark.parametrize("context", [Context(), PACKED], ids=["one document", "packed"])
def test_a_compiled_mixer_computes_the_same(context: Context, device: torch.device) -> None:
    """Traced through autograd (aot_eager), so that fake implementations and autograd formulas are what is compiled."""
    mixer, x = mixer_and_input(device)
    context = on(device, context)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    expected = output_and_gradients(lambda x: mixer(x, context), mixer, x)
    actual = output_and_gradients(lambda x: compiled(x, context), mixer, x)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_a_recomputed_mixer_has_the_same_bits(device: torch.device) -> None:
    mixer, x = mixer_and_input(device)
    kept = output_and_gradients(lambda x: mixer(x, Context()), mixer, x)
    recomputed = output_and_gradients(lambda x: checkpoint(mixer, x, Context(), use_reentrant=False), mixer, x)
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_triton_and_pytorch_agree_in_a_mixer(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    mixer, x = mixer_and_input(triton_device)
    results = []
    for implementation in ("triton", "chunked"):
        monkeypatch.setattr(ops, "runs_triton", lambda x, chosen=implementation: chosen == "triton")
        monkeypatch.setattr(ops, "implementation_for", lambda *_, chosen=implementation: chosen)
        results.append(output_and_gradients(lambda x: mixer(x, on(triton_device, PACKED)), mixer, x))
    for actual, expected in zip(*results, strict=True):
        assert ((actual - expected).norm() / expected.norm()).item() < 1e-3
