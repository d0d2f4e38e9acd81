"""The loss without whole logits against the loss of whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.cross_entropy.reference import cross_entropy_with_gradient_
from trainer.model.loss import IGNORE_INDEX, _chunk_tokens, cross_entropy, linear_cross_entropy, unit_gradient

TOKENS, WIDTH, VOCAB = 37, 12, 50


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, TOKENS, WIDTH, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, dtype=dtype, generator=generator, requires_grad=True)
    targets = torch.randint(VOCAB, (1, TOKENS), generator=generator)
    targets[0, ::5] = IGNORE_INDEX
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 64, None])
@pytest.mark.parametrize(("denominator", "z_loss"), [(None, 0.0), (None, 0.1), (11.0, 1e-5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_any_chunk_gives_the_loss_and_gradients_of_whole_logits(
    chunk: int | None, denominator: float | None, z_loss: float, dtype: torch.dtype, tolerance: float
) -> None:
    hidden, weight, targets = inputs(dtype)
    whole = cross_entropy(hidden @ weight.T, targets, denominator=denominator, z_loss=z_loss)
    expected = torch.autograd.grad(whole, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, denominator=denominator, z_loss=z_loss, chunk_tokens=chunk)
    actual = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_gradient_from_above_is_applied() -> None:
    hidden, weight, targets = inputs()
    plain = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    tripled = torch.autograd.grad(3 * linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    torch.testing.assert_close(tripled, tuple(3 * gradient for gradient in plain))


def test_the_unit_gradient_changes_no_bit() -> None:
    results = []
    for gradient in (None, unit_gradient(torch.device("cpu"))):
        hidden, weight, targets = inputs(torch.float32)
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=8).backward(gradient)
        results.append((hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backward_runs_once() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can be run once"):
        loss.backward()


def test_nothing_to_predict_gives_zeros() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE_INDEX), z_loss=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_without_gradients_only_the_loss_is_made() -> None:
    hidden, weight, targets = inputs()
    expected = linear_cross_entropy(hidden, weight, targets).item()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert loss.item() == expected


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets = inputs()
    weight = weight.detach()
    linear_cross_entropy(hidden, weight, targets, chunk_tokens=8).backward()
    assert hidden.grad.abs().sum() > 0
    assert weight.grad is None


def test_logits_become_the_scaled_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([3, IGNORE_INDEX, 0, 8, 8, IGNORE_INDEX])
    total = cross_entropy(logits, targets, denominator=1, z_loss=0.2)
    (expected,) = torch.autograd.grad(total, logits)
    overwritten = logits.detach().clone()
    losses = cross_entropy_with_gradient_(overwritten, targets, scale=0.5, z_loss=0.2)
    torch.testing.assert_close(losses.sum(), total.detach())
    torch.testing.assert_close(overwritten, expected / 2)
    assert losses[targets == IGNORE_INDEX].tolist() == [0, 0]


def test_bfloat16_loses_no_more_over_chunks_than_a_rounding_a_chunk() -> None:
    hidden, weight, targets = (x.detach() if x.is_floating_point() else x for x in inputs(torch.float32))
    exact = torch.autograd.grad(cross_entropy(hidden @ (w := weight.requires_grad_()).T, targets), w)[0]
    low = weight.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(hidden.bfloat16(), low, targets, chunk_tokens=10)
    (gradient,) = torch.autograd.grad(loss, low)
    assert gradient.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert (gradient.float() - exact).norm() <= 0.02 * exact.norm()


def test_chunks_are_few_and_never_hold_all_logits_of_a_large_problem() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert _chunk_tokens(8192, 100352, cuda) == 4096
    assert _chunk_tokens(4 * 8192, 100352, cuda) * 100352 <= 2**29 + 128 * 100352
    assert _chunk_tokens(8192, 384, cpu) >= 8192
