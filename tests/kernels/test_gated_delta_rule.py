"""The chunked gated delta rule against the token-by-token recurrence in float64, forward and backward."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.documents import segment_ids
from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.gated_delta_rule.reference import recurrent_gated_delta_rule
from kernels.ops import gated_delta_rule, implementation_for

pytestmark = pytest.mark.kernels

NAMES = ("q", "k", "v", "g", "beta", "initial_state")


def make_inputs(
    length: int,
    *,
    batch: int = 2,
    heads: int = 2,
    key_dim: int = 6,
    value_dim: int = 5,
    decay: float = 0.1,
    beta: float | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random inputs; `decay` scales the gates, `beta` fixes the writing strength."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    strength = 2 * torch.sigmoid(2 * randn(batch, length, heads))
    inputs = {
        "q": randn(batch, length, heads, key_dim),
        "k": randn(batch, length, heads, key_dim),
        "v": randn(batch, length, heads, value_dim),
        "g": -decay * torch.nn.functional.softplus(randn(batch, length, heads)),
        "beta": strength if beta is None else torch.full_like(strength, beta),
        "initial_state": randn(batch, heads, key_dim, value_dim),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


def outputs_and_gradients(rule, inputs: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    """Output, final state, and the gradient of a fixed random functional of both in every input."""
    options = {"normalize_qk": True, **options}
    out, state = rule(**inputs, output_final_state=True, **options)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (out, state)]
    gradients = torch.autograd.grad((out * weights[0]).sum() + (state * weights[1]).sum(), list(inputs.values()))
    return {"out": out, "state": state, **{f"d{n}": grad for n, grad in zip(inputs, gradients, strict=True)}}


def assert_same(inputs: dict[str, torch.Tensor], *, tolerance: float = 1e-10, **options) -> None:
    expected = outputs_and_gradients(recurrent_gated_delta_rule, inputs, **options)
    actual = outputs_and_gradients(chunk_gated_delta_rule, inputs, **options)
    for name, value in expected.items():
        assert torch.isfinite(actual[name]).all(), name
        scale = max(1.0, value.abs().max().item())
        assert (actual[name] - value).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_chunked_equals_recurrence(length: int) -> None:
    assert_same(make_inputs(length))


@pytest.mark.parametrize("decay", [0.0, 16.0, 1000.0])
@pytest.mark.parametrize("beta", [0.0, 1e-6, 1.0, 2.0 - 1e-9, 2.0])
def test_extremes_of_gate_and_writing_strength(decay: float, beta: float) -> None:
    """Gate 0 never forgets, 16 x softplus underflows within a chunk, beta 2 reflects the state at the key."""
    assert_same(make_inputs(70, decay=decay, beta=beta, batch=1))


def test_decay_that_would_overflow_unmasked_keeps_float32_finite() -> None:
    """Above the diagonal the log decay differences reach +12800, and e^89 is infinite in float32."""
    inputs = make_inputs(128, dtype=torch.float32, batch=1)
    inputs["g"] = torch.full_like(inputs["g"], -200.0).requires_grad_()
    assert_same(inputs, tolerance=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = make_inputs(5, batch=1, heads=1, key_dim=2, value_dim=2)

    def rule(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        named = dict(zip(NAMES, tensors, strict=True))
        return chunk_gated_delta_rule(**named, output_final_state=True, normalize_qk=True, chunk_size=2)

    assert torch.autograd.gradcheck(rule, tuple(inputs.values()))


@given(length=st.integers(1, 40), chunk_size=st.integers(1, 16), seed=st.integers(0, 2**16), packed=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_length_chunk_and_packing(length: int, chunk_size: int, seed: int, packed: bool) -> None:
    inputs = make_inputs(length, key_dim=3, value_dim=2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(2, length, generator=generator) < 0.2).long().cumsum(1) if packed else None
    expected = outputs_and_gradients(recurrent_gated_delta_rule, inputs, document_ids=ids)
    actual = outputs_and_gradients(chunk_gated_delta_rule, inputs, document_ids=ids, chunk_size=chunk_size)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("lengths", [(64, 66), (1, 63, 1, 65), (30, 100), (3, 3, 3, 121), (130,)])
@pytest.mark.parametrize("rule", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
def test_packed_documents_are_as_if_alone(rule, lengths: tuple[int, ...]) -> None:
    """The first document starts from the initial state, the others from zero; the final state is the last one's."""
    inputs = make_inputs(sum(lengths), batch=1)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    out, state = rule(**inputs, output_final_state=True, normalize_qk=True, document_ids=ids)
    ends = list(itertools.accumulate(lengths))
    for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        alone = {name: x if name == "initial_state" else x[:, start:end] for name, x in inputs.items()}
        if index > 0:
            alone["initial_state"] = torch.zeros_like(inputs["initial_state"])
        alone_out, alone_state = recurrent_gated_delta_rule(**alone, output_final_state=True, normalize_qk=True)
        torch.testing.assert_close(out[:, start:end], alone_out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, alone_state, rtol=1e-10, atol=1e-10)


def test_state_carries_a_sequence_over_a_cut() -> None:
    inputs = make_inputs(100)
    whole, final = chunk_gated_delta_rule(**inputs, output_final_state=True, normalize_qk=True)
    first = {name: x if name == "initial_state" else x[:, :37] for name, x in inputs.items()}
    head, state = chunk_gated_delta_rule(**first, output_final_state=True, normalize_qk=True)
    second = {name: state if name == "initial_state" else x[:, 37:] for name, x in inputs.items()}
    tail, state = chunk_gated_delta_rule(**second, output_final_state=True, normalize_qk=True)
    torch.testing.assert_close(torch.cat((head, tail), dim=1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


def test_one_write_is_read_back() -> None:
    """With beta 1 and a unit key, the value written is the value read, decayed; scale 1 leaves it as it is."""
    k = torch.tensor([[3.0, 4.0], [3.0, 4.0]]).view(1, 2, 1, 2) / 5
    v = torch.tensor([[2.0], [0.0]]).view(1, 2, 1, 1)
    g = torch.tensor([0.0, math.log(0.5)]).view(1, 2, 1)
    beta = torch.tensor([1.0, 0.0]).view(1, 2, 1)
    for rule in (recurrent_gated_delta_rule, chunk_gated_delta_rule):
        out, state = rule(k, k, v, g, beta, scale=1.0)
        torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 1.0]))
        assert state is None


def test_bfloat16_inputs_are_computed_in_float32() -> None:
    inputs = {name: x.detach().bfloat16() for name, x in make_inputs(80).items()}
    wide = {name: x.float() for name, x in inputs.items()}
    out, state = chunk_gated_delta_rule(**inputs, output_final_state=True, normalize_qk=True)
    wide_out, wide_state = chunk_gated_delta_rule(**wide, output_final_state=True, normalize_qk=True)
    assert out.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert torch.equal(out, wide_out.bfloat16())
    assert torch.equal(state, wide_state)


def test_same_inputs_same_bits() -> None:
    inputs = make_inputs(130, dtype=torch.float32)
    first = outputs_and_gradients(gated_delta_rule, inputs)
    second = outputs_and_gradients(gated_delta_rule, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dispatch_runs_what_it_names() -> None:
    inputs = make_inputs(66)
    assert implementation_for(torch.device("cpu")) == "chunked"
    assert torch.equal(gated_delta_rule(**inputs)[0], chunk_gated_delta_rule(**inputs)[0])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("k", (2, 9, 2, 5)), ("v", (2, 8, 2, 5)), ("g", (2, 9, 1)), ("beta", (2, 9)), ("initial_state", (2, 2, 5, 6))],
)
def test_a_misshapen_input_is_named(name: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(9)
    inputs[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must"):
        gated_delta_rule(**inputs)
    # v fixes what the others must be, so that a wrong v is reported as the first that differs from it.
    if name != "v":
        with pytest.raises(ValueError, match=rf"^{name} must have shape"):
            gated_delta_rule(**inputs)


def test_no_tokens_is_an_error() -> None:
    inputs = {name: x[:, :0] if name != "initial_state" else x for name, x in make_inputs(3).items()}
    with pytest.raises(ValueError, match="at least one token"):
        gated_delta_rule(**inputs)


def test_segment_ids_number_changes_and_are_idempotent() -> None:
    ids = torch.tensor([[7, 7, 3, 3, 7], [1, 1, 1, 1, 1]])
    segments = segment_ids(ids)
    assert segments.tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]]
    assert torch.equal(segment_ids(segments), segments)


def test_value_heads_of_a_group_share_their_key_head() -> None:
    inputs = make_inputs(70, heads=6)
    inputs["q"], inputs["k"] = (make_inputs(70, heads=2, seed=1)[name] for name in ("q", "k"))
    assert_same(inputs)
    repeated = {**inputs, "q": inputs["q"].repeat_interleave(3, dim=2), "k": inputs["k"].repeat_interleave(3, dim=2)}
    assert torch.equal(chunk_gated_delta_rule(**inputs)[0], chunk_gated_delta_rule(**repeated)[0])


def test_offsets_and_ids_pack_alike() -> None:
    """Beside that, each document of the offsets has states of its own, and one without tokens keeps its initial one."""
    lengths = torch.tensor([0, 30, 1, 0, 64, 35, 0])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    inputs = make_inputs(130, batch=1)
    states = torch.zeros(7, *inputs.pop("initial_state").shape[1:], dtype=torch.float64)
    states[3] = 1.0
    out, final = gated_delta_rule(**inputs, initial_state=states, output_final_state=True, cu_seqlens=offsets)
    ids = torch.repeat_interleave(torch.arange(7), lengths)[None]
    by_ids, last = gated_delta_rule(**inputs, output_final_state=True, document_ids=ids)
    torch.testing.assert_close(out, by_ids, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final[5:6], last, rtol=1e-10, atol=1e-10)
    assert torch.equal(final[[0, 3, 6]], states[[0, 3, 6]])


@pytest.mark.parametrize(("offsets", "batch", "ids"), [([0], 1, False), ([0, 9], 2, False), ([0, 9], 1, True)])
def test_offsets_that_cannot_be_used_are_refused(offsets: list[int], batch: int, ids: bool) -> None:
    inputs = make_inputs(9, batch=batch)
    document_ids = torch.zeros(batch, 9, dtype=torch.long) if ids else None
    with pytest.raises(ValueError, match="cu_seqlens"):
        gated_delta_rule(**inputs, cu_seqlens=torch.tensor(offsets), document_ids=document_ids)
