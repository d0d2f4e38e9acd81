"""The Triton gated delta rule against the recurrence in float64: on the GPU, else in Triton's interpreter.

The interpreter multiplies bfloat16 as the integers it stores them in, so bfloat16 is tested on the GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.gated_delta_rule.configurations import SIXTEEN_BIT, THIRTY_TWO_BIT, configuration
from kernels.gated_delta_rule.documents import document_by_document
from kernels.gated_delta_rule.reference import recurrent_gated_delta_rule

pytest.importorskip("triton")
from kernels.gated_delta_rule.triton import gated_delta_rule_forward, triton_gated_delta_rule

pytestmark = pytest.mark.kernels

BOUND = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # relative, by norm
INTERPRETED_BOUND = 1e-5
# Of the output's norm: what is left of terms that cancel, where a gradient is next to nothing (a gate that forgets all,
# keys of one dimension), has no relative error.
CANCELLED = 1e-6


class Sizes(NamedTuple):
    length: int
    batch: int = 1
    query_heads: int = 1
    heads: int = 1
    key_dim: int = 16
    value_dim: int = 16
    states: int | None = None  # the batch's rows by default


def make_inputs(
    sizes: Sizes,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    decay: float = 0.1,
    gate: float | None = None,
    beta: float | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Fresh random inputs; `decay` scales the gates, `gate` and `beta` fix gates and writing strength."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (sizes.batch, sizes.length)
    g = -decay * torch.nn.functional.softplus(randn(*shape, sizes.heads))
    strength = 2 * torch.sigmoid(2 * randn(*shape, sizes.heads))
    inputs = {
        "q": randn(*shape, sizes.query_heads, sizes.key_dim).to(dtype),
        "k": randn(*shape, sizes.query_heads, sizes.key_dim).to(dtype),
        "v": randn(*shape, sizes.heads, sizes.value_dim).to(dtype),
        "g": g if gate is None else torch.full_like(g, gate),
        "beta": (strength if beta is None else torch.full_like(strength, beta)).to(dtype),
        "initial_state": randn(sizes.states or sizes.batch, sizes.heads, sizes.key_dim, sizes.value_dim),
    }
    return {name: x.to(device) for name, x in inputs.items()}


def outputs_and_gradients(rule: Callable, inputs: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    """Output, final state, and the gradient of a fixed random functional of both in every input."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, state = rule(**leaves, output_final_state=True, **{"normalize_qk": True, **options})
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in (out, state)]
    gradients = torch.autograd.grad((out, state), list(leaves.values()), weights)
    named = {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), "state": state.detach(), **named}


def assert_close(inputs: dict[str, Tensor], *, reference: Callable = recurrent_gated_delta_rule, **options) -> None:
    wide = {name: x.double() for name, x in inputs.items()}
    expected = outputs_and_gradients(reference, wide, **{k: v for k, v in options.items() if k != "cu_seqlens"})
    actual = outputs_and_gradients(triton_gated_delta_rule, inputs, **options)
    bound = BOUND[inputs["v"].dtype] if inputs["v"].is_cuda else INTERPRETED_BOUND
    for name, value in expected.items():
        assert actual[name].dtype == (torch.float32 if name == "state" else inputs.get(name[1:], inputs["v"]).dtype)
        error = (actual[name].double() - value).norm().item()
        assert error <= bound * value.norm().item() + CANCELLED * expected["out"].norm().item(), name


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_lengths_around_a_chunk(triton_device: torch.device, length: int) -> None:
    assert_close(make_inputs(Sizes(length, batch=2), triton_device))


@pytest.mark.parametrize("dims", [(24, 20), (96, 192), (128, 128), (64, 64), (40, 72)], ids=str)
def test_head_dims_in_two_blocks(triton_device: torch.device, dims: tuple[int, int]) -> None:
    assert_close(make_inputs(Sizes(70, key_dim=dims[0], value_dim=dims[1]), triton_device))


def test_grouped_value_heads_share_a_key_head(triton_device: torch.device) -> None:
    assert_close(make_inputs(Sizes(70, query_heads=2, heads=4), triton_device))


@pytest.mark.parametrize("gate", [0.0, -1e-3, -1.6, -16.0])
@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.999, 2.0])
def test_extremes_of_gate_and_writing_strength(triton_device: torch.device, gate: float, beta: float) -> None:
    inputs = make_inputs(Sizes(70), triton_device, beta=beta)
    inputs["g"] = inputs["g"] * 0.05 + gate
    assert_close(inputs)


@pytest.mark.parametrize("gate", [-200.0, -1e4, float("-inf")])
def test_a_gate_that_forgets_all_gives_no_nan(triton_device: torch.device, gate: float) -> None:
    """e^-200 is 0 in float32; the gates' own gradients are then 0 too, where float64 still has 1e-87."""
    actual = outputs_and_gradients(triton_gated_delta_rule, make_inputs(Sizes(70), triton_device, gate=gate))
    assert all(x.isfinite().all() for x in actual.values())
    assert actual["dinitial_state"].abs().max() == 0
    assert actual["dg"].abs().max() <= CANCELLED * actual["out"].norm()


def test_parallel_keys_at_full_strength(triton_device: torch.device) -> None:
    """The triangular system is worst conditioned where all keys point the same way and the gate keeps everything."""
    inputs = make_inputs(Sizes(70), triton_device, beta=1.9, decay=0.01)
    inputs["k"] = inputs["k"][:, :1] + 0.3 * inputs["k"]
    assert_close(inputs)


def test_without_norms_and_with_a_scale(triton_device: torch.device) -> None:
    inputs = make_inputs(Sizes(70), triton_device)
    inputs["k"] = torch.nn.functional.normalize(inputs["k"], dim=-1)
    assert_close(inputs, normalize_qk=False, scale=0.3)


def test_packed_documents_by_ids(triton_device: torch.device) -> None:
    lengths = torch.tensor([30, 40, 1, 64, 15])
    ids = torch.repeat_interleave(torch.arange(5), lengths)
    other = torch.repeat_interleave(torch.arange(3), torch.tensor([64, 64, 22]))
    ids = torch.stack((ids, other)).to(triton_device)
    assert_close(make_inputs(Sizes(150, batch=2), triton_device), document_ids=ids)


def test_packed_documents_by_offsets_have_states_of_their_own(triton_device: torch.device) -> None:
    """Documents without tokens, at either end too, hand on their initial state."""
    offsets = torch.tensor([0, 0, 30, 31, 31, 95, 150, 150], dtype=torch.int32, device=triton_device)
    inputs = make_inputs(Sizes(150, query_heads=1, heads=2, states=7), triton_device)

    def by_document(**arguments: object) -> tuple[Tensor, Tensor | None]:
        return document_by_document(recurrent_gated_delta_rule, cu_seqlens=offsets, **arguments)

    assert_close(inputs, reference=by_document, cu_seqlens=offsets)


def test_non_contiguous_inputs(triton_device: torch.device) -> None:
    inputs = make_inputs(Sizes(70, heads=2, query_heads=2), triton_device)
    inputs["q"] = inputs["q"].repeat(1, 1, 1, 3)[..., 16:32]
    inputs["k"] = inputs["k"][..., None].repeat(1, 1, 1, 1, 2)[..., 1]
    inputs["v"] = inputs["v"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["g"] = inputs["g"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(inputs)


@given(
    length=st.integers(1, 100),
    group=st.integers(1, 3),
    key_dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    packed=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(
    triton_device: torch.device, length: int, group: int, key_dim: int, value_dim: int, packed: bool, seed: int
) -> None:
    sizes = Sizes(length, heads=group, key_dim=key_dim, value_dim=value_dim)
    starts = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)) < 0.1
    ids = starts.long().cumsum(1).to(triton_device) if packed else None
    assert_close(make_inputs(sizes, triton_device, seed=seed), document_ids=ids)


def test_same_inputs_same_bits(triton_device: torch.device) -> None:
    inputs = make_inputs(Sizes(130, heads=2), triton_device)
    first, second = (outputs_and_gradients(triton_gated_delta_rule, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_element_is_written(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """All buffers start as NaN; one that is read, or returned, before it is written would show."""
    inputs = make_inputs(Sizes(70, batch=2), triton_device)
    expected = outputs_and_gradients(triton_gated_delta_rule, inputs)
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(float("nan")))
    new_empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan")))
    actual = outputs_and_gradients(triton_gated_delta_rule, inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_operator_agrees_with_its_fake(triton_device: torch.device) -> None:
    x = make_inputs(Sizes(65, heads=2), triton_device)
    arguments = (*(x[n].requires_grad_() for n in ("q", "k", "v", "g", "beta", "initial_state")), None, None)
    torch.library.opcheck(
        gated_delta_rule_forward,
        (*arguments, 0.25, True, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_checkpointing_gives_the_same_gradients(triton_device: torch.device) -> None:
    inputs = make_inputs(Sizes(65), triton_device)

    def checkpointed(**arguments: object) -> tuple[Tensor, Tensor | None]:
        run = torch.utils.checkpoint.checkpoint
        return run(lambda: triton_gated_delta_rule(**arguments), use_reentrant=False)

    expected = outputs_and_gradients(triton_gated_delta_rule, inputs)
    actual = outputs_and_gradients(checkpointed, inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_unsupported_dtypes_are_named() -> None:
    inputs = make_inputs(Sizes(3), torch.device("cpu"))
    inputs["k"] = inputs["k"].half()
    with pytest.raises(ValueError, match=r"share one of .* got torch.float32, torch.float16"):
        triton_gated_delta_rule(**inputs)
    inputs = make_inputs(Sizes(3, batch=2), torch.device("cpu"))
    with pytest.raises(ValueError, match="cu_seqlens needs a batch of one row"):
        triton_gated_delta_rule(**inputs, cu_seqlens=torch.tensor([0, 3]))


def test_each_architecture_has_a_configuration_for_each_kernel() -> None:
    assert set(SIXTEEN_BIT) == {80, 90, 100}
    assert all(set(table) == set(THIRTY_TWO_BIT) for table in SIXTEEN_BIT.values())
    assert configuration("scan_states", (9, 0), 2) == SIXTEEN_BIT[90]["scan_states"].configuration
    assert configuration("scan_states", (12, 0), 2) == SIXTEEN_BIT[100]["scan_states"].configuration
    assert configuration("scan_states", (7, 5), 2) == SIXTEEN_BIT[80]["scan_states"].configuration


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize("length", [1, 65, 8192, 65536])
def test_full_size_on_the_gpu(length: int, dtype: torch.dtype) -> None:
    """Gates of A up to 16 as at the start of training; the chunked form in float64, itself tested, is the reference."""
    sizes = Sizes(length, query_heads=2, heads=2, key_dim=96, value_dim=192)
    inputs = make_inputs(sizes, torch.device("cuda"), dtype=dtype, decay=1.0)
    assert_close(inputs, reference=chunk_gated_delta_rule)
