"""The neighbours' Triton kernels against their references in float64: on the GPU, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from kernels.architecture import architecture_of
from kernels.cross_entropy import reference as cross_entropy_reference
from kernels.delta_gate import reference as delta_gate_reference
from kernels.gated_rms_norm import reference as gated_rms_norm_reference
from kernels.l2norm import reference as l2norm_reference
from kernels.rms_norm import reference as rms_norm_reference
from kernels.short_conv import reference as short_conv_reference

pytest.importorskip("triton")
from kernels.cross_entropy import triton as cross_entropy_triton
from kernels.delta_gate import triton as delta_gate_triton
from kernels.gated_rms_norm import triton as gated_rms_norm_triton
from kernels.l2norm import triton as l2norm_triton
from kernels.rms_norm import triton as rms_norm_triton
from kernels.short_conv import triton as short_conv_triton

pytestmark = pytest.mark.kernels

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative, by norm

Operation = Callable[..., Tensor | Sequence[Tensor]]
# Each: Triton's form, the reference, and the shapes of the inputs.
CASES: dict[str, tuple[Operation, Operation, tuple[tuple[int, ...], ...]]] = {
    "delta_gate": (delta_gate_triton.delta_gate, delta_gate_reference.delta_gate, ((2, 70, 5), (5,), (5,))),
    "rms_norm": (
        lambda x, w: rms_norm_triton.rms_norm(x, w, EPS),
        lambda x, w: rms_norm_reference.rms_norm(x, w, EPS),
        ((3, 37, 100), (100,)),
    ),
    "rms_norm_wide": (
        lambda x, w: rms_norm_triton.rms_norm(x, w, EPS),
        lambda x, w: rms_norm_reference.rms_norm(x, w, EPS),
        ((18, 3840), (3840,)),
    ),
    "gated_rms_norm": (
        lambda x, gate, w: gated_rms_norm_triton.gated_rms_norm(x, gate, w, EPS),
        lambda x, gate, w: gated_rms_norm_reference.gated_rms_norm(x, gate, w, EPS),
        ((2, 50, 3, 192), (2, 50, 3, 192), (192,)),
    ),
    "l2_norm": (l2norm_triton.l2_norm, l2norm_reference.l2_norm, ((2, 50, 3, 96),)),
    "short_convolutions": (
        lambda a, b, c, u, v, w: short_conv_triton.short_convolutions((a, b, c), (u, v, w)),
        lambda a, b, c, u, v, w: tuple(
            short_conv_reference.short_convolution(x, weight) for x, weight in ((a, u), (b, v), (c, w))
        ),
        ((2, 41, 12), (2, 41, 70), (2, 41, 8), (12, 4), (70, 3), (8, 1)),
    ),
}


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device, dtype)


def inputs_for(name: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    shapes = CASES[name][2]
    return [randn(*shape, dtype=dtype, device=device, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def results_and_gradients(operation: Operation, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the operation returns, and the gradient of a random functional of it in every input."""
    returned = operation(*inputs)
    outputs = [returned] if isinstance(returned, Tensor) else list(returned)
    upstream = [randn(*y.shape, dtype=y.dtype, device=y.device, seed=9 + i) for i, y in enumerate(outputs)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, upstream)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(actual).all()
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, index
        assert relative_error(a, e) <= tolerance, index


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """What torch.empty returns is NaN, so that an element that no program writes is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_triton_equals_the_reference_with_gradients(name: str, dtype: torch.dtype, triton_device: torch.device) -> None:
    operation, reference, _ = CASES[name]
    inputs = inputs_for(name, dtype, triton_device)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    actual = results_and_gradients(operation, inputs)
    assert [x.dtype for x in actual[-len(inputs) :]] == [dtype] * len(inputs)
    assert_close(actual, results_and_gradients(reference, wide), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the interpreter truncates to bfloat16")
@pytest.mark.parametrize("name", CASES)
def test_the_forward_rounds_where_the_reference_does(name: str, triton_device: torch.device) -> None:
    """In bfloat16 another order of casts gives other bits in a tenth of the elements; another order of sums in few."""
    operation, reference, _ = CASES[name]
    inputs = inputs_for(name, torch.bfloat16, triton_device)
    first = [y[0] if isinstance(y, (tuple, list)) else y for y in (operation(*inputs), reference(*inputs))]
    actual, expected = (y.detach().to(torch.bfloat16) for y in first)
    assert (actual != expected).float().mean().item() < 0.01


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs_and_gradients(name: str, triton_device: torch.device) -> None:
    """Every input is a slice of a wider tensor, and so is the gradient that comes from above."""
    operation, reference, shapes = CASES[name]
    wide = [
        randn(*shape[:-1], 2 * shape[-1] + 1, device=triton_device, seed=i).requires_grad_()
        for i, shape in enumerate(shapes)
    ]

    def sliced(run: Operation) -> Operation:
        def on_slices(*tensors: Tensor) -> Tensor:
            returned = run(*(x[..., 1 : 1 + shape[-1]] for x, shape in zip(tensors, shapes, strict=True)))
            outputs = [returned] if isinstance(returned, Tensor) else list(returned)
            return torch.cat([y.double() for y in outputs], dim=-1).transpose(0, 1)

        return on_slices

    assert_close(results_and_gradients(sliced(operation), wide), results_and_gradients(sliced(reference), wide), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_same_inputs_same_bits(name: str, triton_device: torch.device) -> None:
    operation = CASES[name][0]
    inputs = inputs_for(name, torch.bfloat16, triton_device)
    first, second = (results_and_gradients(operation, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_registration_passes_opcheck(name: str, triton_device: torch.device) -> None:
    """Schema, fake implementations and autograd formula agree with what runs, also under tracing."""
    operation, _, _ = CASES[name]
    calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "holdfast":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    inputs = inputs_for(name, torch.float32, triton_device)
    with Recorder():
        operation(*inputs)
    (called, args), *_ = calls
    torch.library.opcheck(
        called, torch.utils._pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), args)
    )


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_weights_of_another_dtype(weight_dtype: torch.dtype, triton_device: torch.device) -> None:
    x = randn(4, 9, 48, dtype=torch.bfloat16, device=triton_device).requires_grad_()
    gate = randn(4, 9, 48, dtype=torch.bfloat16, device=triton_device, seed=1).requires_grad_()
    weight = randn(48, dtype=weight_dtype, device=triton_device, seed=2).requires_grad_()
    for name, inputs in {"rms_norm": [x, weight], "gated_rms_norm": [x, gate, weight]}.items():
        operation, reference, _ = CASES[name]
        actual, expected = (results_and_gradients(run, inputs) for run in (operation, reference))
        assert actual[0].dtype == expected[0].dtype
        assert_close(actual, expected, 1e-2)


PACKINGS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "one token": lambda segment: (1,),
    "two tokens": lambda segment: (1, 1),
    "on the edge": lambda segment: (segment, segment),
    "around the edge": lambda segment: (segment - 1, 2, segment + 1),
    "single tokens": lambda segment: (1, 1, 1, 0, segment, 1),
    "threes": lambda segment: (3,) * (segment // 2),
}


@pytest.mark.parametrize(
    ("packing", "width"), [*((name, 4) for name in PACKINGS), *(("threes", width) for width in (1, 2, 3))]
)
def test_packed_convolutions(packing: str, width: int, triton_device: torch.device) -> None:
    """Boundaries on and off the edges of tiles and segments; the second row is one document."""
    launch = short_conv_triton.LAUNCHES[architecture_of(triton_device)]
    lengths = PACKINGS[packing](launch.backward_rows)
    length = sum(lengths)
    packed = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = torch.stack((packed, torch.zeros_like(packed))).to(triton_device)
    x = randn(2, length, 20, device=triton_device).requires_grad_()
    weight = randn(20, width, device=triton_device, seed=1).requires_grad_()
    actual = results_and_gradients(
        lambda x, w: short_conv_triton.short_convolutions((x,), (w,), document_ids=ids), (x, weight)
    )
    expected = results_and_gradients(
        lambda x, w: short_conv_reference.short_convolution(x, w, document_ids=ids),
        [tensor.detach().double().requires_grad_() for tensor in (x, weight)],
    )
    assert_close(actual, expected, 1e-5)


def test_a_neighbour_document_that_is_not_finite_stays_there(triton_device: torch.device) -> None:
    x = randn(1, 40, 8, device=triton_device)
    x[:, :20] = float("nan")
    x.requires_grad_()
    weight = randn(8, 4, device=triton_device, seed=1)
    ids = (torch.arange(40, device=triton_device) >= 20).long()[None]
    (y,) = short_conv_triton.short_convolutions((x,), (weight,), document_ids=ids)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.isfinite(y[:, 20:]).all()
    assert torch.isfinite(dx[:, 20:]).all()


def test_a_wide_convolution_is_refused(triton_device: torch.device) -> None:
    with pytest.raises(ValueError, match="wider than 4"):
        short_conv_triton.short_convolutions((torch.zeros(1, 2, 3),), (torch.zeros(3, 5),))


@pytest.mark.parametrize("x", [-200.0, -30.0, -1e-3, 0.0, 19.9, 20.1, 200.0])
def test_gate_at_extremes(x: float, triton_device: torch.device) -> None:
    """softplus keeps its digits where 1 + e^x rounds to one, and does not overflow; A = 16 is the initial maximum."""
    inputs = [torch.tensor(v, device=triton_device).requires_grad_() for v in ([[[x]]], [2.7725887], [0.0])]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    actual = results_and_gradients(delta_gate_triton.delta_gate, inputs)
    expected = results_and_gradients(delta_gate_reference.delta_gate, wide)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("vocabulary", [7, 1000, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy_overwrites_logits_with_their_gradient(
    z_loss: float, dtype: torch.dtype, vocabulary: int, triton_device: torch.device
) -> None:
    logits = (4 * randn(6, vocabulary)).to(triton_device, dtype)
    targets = torch.tensor([0, vocabulary - 1, -100, 3, -100, 5], device=triton_device)
    wide = logits.double()
    expected = cross_entropy_reference.cross_entropy_with_gradient_(wide, targets, scale=0.25, z_loss=z_loss)
    scale = torch.tensor(0.25, device=triton_device)
    for given in (0.25, scale):
        overwritten = logits.clone()
        losses = cross_entropy_triton.cross_entropy_with_gradient_(overwritten, targets, scale=given, z_loss=z_loss)
        assert losses.dtype == torch.float32
        assert relative_error(losses, expected) <= 1e-6
        assert overwritten.dtype == dtype
        assert relative_error(overwritten, wide) <= TOLERANCE[dtype]
        assert not overwritten[targets == -100].any()


def test_cross_entropy_of_extreme_logits(triton_device: torch.device) -> None:
    """Masked vocabulary entries of -inf, a row of large logits, a certain prediction."""
    logits = randn(3, 300)
    logits[0, 10:] = float("-inf")
    logits[1] += 1e4
    logits[2, 4] = 200.0
    targets = torch.tensor([3, 7, 4])
    wide = logits.double()
    expected = cross_entropy_reference.cross_entropy_with_gradient_(wide, targets, scale=1.0, z_loss=0.0)
    logits, targets = logits.to(triton_device), targets.to(triton_device)
    losses = cross_entropy_triton.cross_entropy_with_gradient_(logits, targets, scale=1.0, z_loss=0.0)
    torch.testing.assert_close(losses.cpu().double(), expected, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(logits.cpu().double(), wide, rtol=1e-2, atol=1e-6)


def test_cross_entropy_of_logits_in_a_wider_tensor(triton_device: torch.device) -> None:
    wider = randn(5, 70, device=triton_device)
    logits, targets = wider[:, :50], torch.arange(5, device=triton_device)
    kept, expected = wider[:, 50:].clone(), logits.clone()
    losses = cross_entropy_triton.cross_entropy_with_gradient_(logits, targets, scale=1.0, z_loss=1e-3)
    reference = cross_entropy_reference.cross_entropy_with_gradient_(expected, targets, scale=1.0, z_loss=1e-3)
    torch.testing.assert_close(losses, reference)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(wider[:, 50:], kept)
    with pytest.raises(ValueError, match="contiguous rows"):
        cross_entropy_triton.cross_entropy_with_gradient_(logits.T, targets, scale=1.0, z_loss=0.0)
