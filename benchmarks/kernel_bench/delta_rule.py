"""The gated delta rule at Olmo Hybrid's shapes, and at K = V = 128."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_bench import fla
from benchmarks.kernel_bench.case import Case, Implementation, Work
from kernels.gated_delta_rule.reference import recurrent_gated_delta_rule
from kernels.ops import gated_delta_rule

_CHUNK = 64
# batch, tokens, heads, key dimension, value dimension
_SHAPES = ((4, 8192, 30, 96, 192), (1, 65536, 30, 96, 192), (4, 8192, 30, 128, 128))


def cases() -> Iterator[Case]:
    for batch, length, heads, key_dim, value_dim in _SHAPES:
        tokens = batch * length * heads
        forward = _forward_work(tokens, key_dim, value_dim)
        yield Case(
            operation="gated_delta_rule",
            shape=f"{batch} x {length}, {heads} heads, {key_dim}/{value_dim}",
            inputs=_inputs(batch, length, heads, key_dim, value_dim),
            implementations=_implementations(),
            forward=forward,
            # Reads q, k, v, g, beta and the gradient of o; writes five gradients. Twice the products of the forward pass.
            backward=Work(tokens * (2 * (4 * key_dim + 3 * value_dim) + 12), 2 * forward.flops),
            reference=(_rule(recurrent_gated_delta_rule), _inputs(2, 130, 3, key_dim, value_dim)),
        )


def _forward_work(tokens: int, key_dim: int, value_dim: int) -> Work:
    """Per token and head: three products with the state, and with the chunk k k^T, q k^T, u, w and the output's."""
    flops = 6 * key_dim * value_dim + 2 * _CHUNK * (3 * key_dim + 2 * value_dim)
    return Work(tokens * (2 * (2 * key_dim + 2 * value_dim) + 6), tokens * flops)


def _inputs(batch: int, length: int, heads: int, key_dim: int, value_dim: int) -> list[Tensor]:
    """Bfloat16 with the gates of a freshly initialised model: A uniform in (0, 16), steps log-uniform in [1e-3, 0.1]."""
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    q, k = (randn(batch, length, heads, key_dim).bfloat16() for _ in range(2))
    v = randn(batch, length, heads, value_dim).bfloat16()
    step = torch.logspace(-3, -1, heads, device="cuda")
    rate = torch.linspace(0.5, 16, heads, device="cuda")[torch.randperm(heads, generator=generator, device="cuda")]
    g = -rate * F.softplus(randn(batch, length, heads) + step.expm1().log())
    beta = (2 * randn(batch, length, heads).sigmoid()).bfloat16()
    return [x.requires_grad_() for x in (q, k, v, g, beta)]


def _rule(run: Implementation) -> Implementation:
    return lambda q, k, v, g, beta: run(q, k, v, g, beta, normalize_qk=True)[0]


def _implementations() -> dict[str, Implementation]:
    implementations = {"ours": _rule(gated_delta_rule)}
    if fla.available():
        chunk = fla.module("ops.gated_delta_rule").chunk_gated_delta_rule
        implementations["fla"] = lambda q, k, v, g, beta: chunk(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[
            0
        ]
    return implementations
