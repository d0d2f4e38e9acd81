"""The operations around the delta rule at the shapes of Olmo Hybrid 7B, 4 x 8192 tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_bench import fla
from benchmarks.kernel_bench.case import Case, Implementation, Work
from kernels import ops
from kernels.cross_entropy import reference as cross_entropy_reference
from kernels.delta_gate import reference as delta_gate_reference
from kernels.gated_rms_norm import reference as gated_rms_norm_reference
from kernels.l2norm import reference as l2norm_reference
from kernels.rms_norm import reference as rms_norm_reference
from kernels.short_conv import reference as short_conv_reference

BATCH, LENGTH, HEADS, KEY_DIM, VALUE_DIM, D_MODEL, VOCABULARY = 4, 8192, 30, 96, 192, 3840, 100352
TOKENS = BATCH * LENGTH
_EPS = 1e-6


def cases() -> Iterator[Case]:
    yield _short_convolutions()
    yield _short_convolutions(packed=True)
    yield _delta_gate()
    yield _gated_rms_norm()
    yield _rms_norm()
    yield _l2_norm()
    yield _cross_entropy()


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype).requires_grad_(grad)


def _with_fla(implementations: dict[str, Implementation], rival: Implementation) -> dict[str, Implementation]:
    return implementations | ({"fla": rival} if fla.available() else {})


def _short_convolutions(packed: bool = False) -> Case:
    """q, k and v together; packed into documents of 1024 tokens or not. fla has documents for one row only."""
    widths = (HEADS * KEY_DIM, HEADS * KEY_DIM, HEADS * VALUE_DIM)

    def inputs(batch: int, length: int, widths: Sequence[int]) -> list[Tensor]:
        xs = [_randn(batch, length, width, seed=i) for i, width in enumerate(widths)]
        return xs + [_randn(width, 4, seed=3 + i) for i, width in enumerate(widths)]

    ids = (torch.arange(LENGTH, device="cuda") // 1024).expand(BATCH, LENGTH).contiguous() if packed else None

    def ours(*tensors: Tensor) -> Sequence[Tensor]:
        return ops.short_convolutions(tensors[:3], tensors[3:], document_ids=ids)

    def reference(*tensors: Tensor) -> Sequence[Tensor]:
        return [short_conv_reference.short_convolution(x, w) for x, w in zip(tensors[:3], tensors[3:], strict=True)]

    def rival(*tensors: Tensor) -> Sequence[Tensor]:
        run = fla.module("modules.causal_conv1d").causal_conv1d
        return [run(x, w, activation="silu")[0] for x, w in zip(tensors[:3], tensors[3:], strict=True)]

    each = 2 * TOKENS * sum(widths)
    return Case(
        "short_convolutions", f"{BATCH} x {LENGTH}, {widths}" + (", packed" if packed else ""),
        inputs(BATCH, LENGTH, widths), {"ours": ours} if packed else _with_fla({"ours": ours}, rival),
        Work(2 * each), Work(3 * each), reference=None if packed else (reference, inputs(2, 300, (24, 40, 136))),
    )  # fmt: skip


def _delta_gate() -> Case:
    def inputs(length: int) -> list[Tensor]:
        return [_randn(BATCH, length, HEADS), _randn(HEADS, seed=1), _randn(HEADS, seed=2)]

    values = TOKENS * HEADS
    return Case(
        "delta_gate", f"{BATCH} x {LENGTH} x {HEADS}", inputs(LENGTH),
        {"ours": ops.delta_gate, "pytorch": delta_gate_reference.delta_gate},
        Work(6 * values), Work(8 * values), reference=(delta_gate_reference.delta_gate, inputs(300)),
    )  # fmt: skip


def _gated_rms_norm() -> Case:
    def inputs(length: int) -> list[Tensor]:
        shape = (BATCH, length, HEADS, VALUE_DIM)
        return [_randn(*shape), _randn(*shape, seed=1), _randn(VALUE_DIM, seed=2)]

    def reference(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return gated_rms_norm_reference.gated_rms_norm(x, gate, weight, _EPS)

    def rival(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return fla.module("modules.norm.fused_norm_gate").rms_norm_gated(x, gate, weight, None, eps=_EPS)

    each = 2 * TOKENS * HEADS * VALUE_DIM
    implementations = {"ours": lambda x, gate, weight: ops.gated_rms_norm(x, gate, weight, _EPS), "pytorch": reference}
    return Case(
        "gated_rms_norm", f"{BATCH} x {LENGTH} x {HEADS} x {VALUE_DIM}", inputs(LENGTH),
        _with_fla(implementations, rival), Work(3 * each), Work(5 * each), reference=(reference, inputs(20)),
    )  # fmt: skip


def _rms_norm() -> Case:
    def inputs(rows: int) -> list[Tensor]:
        return [_randn(rows, D_MODEL), _randn(D_MODEL, seed=1)]

    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm_reference.rms_norm(x, weight, _EPS)

    def rival(x: Tensor, weight: Tensor) -> Tensor:
        return fla.module("modules.norm.layernorm").rms_norm(x, weight, None, eps=_EPS)

    each = 2 * TOKENS * D_MODEL
    implementations = {
        "ours": lambda x, weight: ops.rms_norm(x, weight, _EPS),
        "pytorch": lambda x, weight: F.rms_norm(x, weight.shape, weight, _EPS),
    }
    return Case(
        "rms_norm", f"{TOKENS} x {D_MODEL}", inputs(TOKENS), _with_fla(implementations, rival),
        Work(2 * each), Work(3 * each), reference=(reference, inputs(300)),
    )  # fmt: skip


def _l2_norm() -> Case:
    def inputs(length: int) -> list[Tensor]:
        return [_randn(BATCH, length, HEADS, KEY_DIM)]

    def rival(x: Tensor) -> Tensor:
        return fla.module("modules.norm.l2norm").l2norm(x)

    each = 2 * TOKENS * HEADS * KEY_DIM
    implementations = {"ours": ops.l2_norm, "pytorch": l2norm_reference.l2_norm}
    return Case(
        "l2_norm", f"{BATCH} x {LENGTH} x {HEADS} x {KEY_DIM}", inputs(LENGTH), _with_fla(implementations, rival),
        Work(2 * each), Work(3 * each), reference=(l2norm_reference.l2_norm, inputs(20)),
    )  # fmt: skip


def _cross_entropy() -> Case:
    """Loss and gradient in one call; fla's in two, the gradient in place too. Logits are renewed before each call."""
    rows, z_loss = LENGTH, 1e-5
    source, logits = (_randn(rows, VOCABULARY, grad=False) for _ in range(2))
    targets = torch.randint(VOCABULARY, (rows,), device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def ours(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return ops.cross_entropy_with_gradient_(logits, targets, scale=1 / len(logits), z_loss=z_loss), logits

    def reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        run = cross_entropy_reference.cross_entropy_with_gradient_
        return run(logits, targets, scale=1 / len(logits), z_loss=z_loss), logits

    def rival(logits: Tensor, targets: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        run = fla.module("modules.fused_cross_entropy.ops").cross_entropy_loss
        losses, _ = run(leaf, targets, lse_square_scale=z_loss, inplace_backward=True)
        return torch.autograd.grad(losses.mean(), leaf)[0]

    small = (_randn(64, 5000, grad=False, seed=5), torch.randint(5000, (64,), device="cuda"))
    return Case(
        "cross_entropy", f"{rows} x {VOCABULARY}", (logits, targets), _with_fla({"ours": ours}, rival),
        Work(2 * 2 * rows * VOCABULARY), None, prepare=lambda: logits.copy_(source), reference=(reference, small),
    )  # fmt: skip
