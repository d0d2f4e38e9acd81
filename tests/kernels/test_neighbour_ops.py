"""The short convolution and the gated RMSNorm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.gated_rms_norm.reference import gated_rms_norm
from kernels.short_conv import reference, shifted

pytestmark = pytest.mark.kernels


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("convolution", [reference.short_convolution, shifted.short_convolution])
@pytest.mark.parametrize("length", [1, 3, 4, 20])
def test_short_convolution_is_the_causal_conv1d(convolution, length: int) -> None:
    x, weight = randn(2, length, 6), randn(6, 4, seed=1)
    expected = F.conv1d(x.transpose(1, 2), weight[:, None], padding=3, groups=6)[..., :length].transpose(1, 2)
    torch.testing.assert_close(convolution(x, weight), F.silu(expected))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_shifted_convolution_equals_the_reference_with_gradients(length: int, packed: bool) -> None:
    x, weight = randn(2, length, 5).requires_grad_(), randn(5, 4, seed=1).requires_grad_()
    ids = (torch.arange(length) // 3).expand(2, length) if packed else None
    upstream = randn(2, length, 5, seed=2)
    results = []
    for module in (reference, shifted):
        y = module.short_convolution(x, weight, document_ids=ids)
        results.append((y, *torch.autograd.grad(y, (x, weight), upstream)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_shifted_convolution_passes_gradcheck() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 2]])
    inputs = (randn(1, 6, 2).requires_grad_(), randn(2, 3, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: shifted.short_convolution(x, w, document_ids=ids), inputs)


@pytest.mark.parametrize("convolution", [reference.short_convolution, shifted.short_convolution])
def test_short_convolution_does_not_cross_documents(convolution) -> None:
    x, weight = randn(1, 9, 3), randn(3, 4, seed=1)
    ids = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 2, 2]])
    alone = torch.cat([convolution(part, weight) for part in x.split((2, 5, 2), dim=1)], dim=1)
    torch.testing.assert_close(convolution(x, weight, document_ids=ids), alone)


@pytest.mark.parametrize("convolution", [reference.short_convolution, shifted.short_convolution])
def test_short_convolution_sums_bfloat16_in_float32(convolution) -> None:
    x, weight = randn(2, 8, 3, dtype=torch.bfloat16), randn(3, 4, seed=1, dtype=torch.bfloat16)
    y = convolution(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, convolution(x.float(), weight.float()).bfloat16())


@pytest.mark.parametrize("convolution", [reference.short_convolution, shifted.short_convolution])
def test_short_convolution_refuses_other_channels(convolution) -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 3\) and \(2, 4\)"):
        convolution(torch.zeros(1, 4, 3), torch.zeros(2, 4))


def test_gated_rms_norm_formula_and_gradient() -> None:
    x, gate, weight = randn(3, 5), randn(3, 5, seed=1), randn(5, seed=2)
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gate * gate.sigmoid()
    torch.testing.assert_close(gated_rms_norm(x, gate, weight, 1e-5), expected)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, gate, weight))
    assert torch.autograd.gradcheck(lambda *tensors: gated_rms_norm(*tensors, 1e-5), inputs)


def test_gated_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(gated_rms_norm(torch.zeros(2, 4), torch.ones(2, 4), torch.ones(4), 1e-5), torch.zeros(2, 4))
