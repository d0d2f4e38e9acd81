"""Measure launch configurations of the kernels on this GPU: `python -m kernels.gated_delta_rule.tune`.

Prints, for each kernel, the candidates with their median time and the worst error of any output or gradient against the
chunked form in float64, and last the rows for `configurations.py`. A candidate whose error is over the bound is never
proposed: compilers have produced wrong gradients from right code for single configurations.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kernels.gated_delta_rule import configurations
from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.gated_delta_rule.configurations import Configuration, Kernel, Pinned
from kernels.gated_delta_rule.launch import run_backward, run_forward
from kernels.gated_delta_rule.triton import triton_gated_delta_rule

ERROR_BOUND = 1e-2  # relative, bf16 inputs against float64
REPEATS = 5
# The fields of `Configuration`; a scan's value block is a program's, so it fixes how many programs there are.
CANDIDATES: dict[Kernel, list[tuple[int, ...]]] = {
    "intra_chunk": [(2, 1, 64), (4, 1, 64), (4, 1, 64, 168), (4, 1, 64, 128), (8, 1, 64)],
    "scan_states": list(itertools.product((4, 8), (1, 2, 3), (64,))),
    "scan_states_for_backward": list(itertools.product((4, 8), (1, 2, 3, 4), (64,))),
    "scan_state_gradients": list(itertools.product((4, 8), (1, 2, 3), (64,))),
    "chunk_gradients": list(itertools.product((4, 8), (2, 3, 4), (32, 64))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=30)
    parser.add_argument("--key-dim", type=int, default=96)
    parser.add_argument("--value-dim", type=int, default=192)
    parser.add_argument("--kernel", action="append", choices=list(CANDIDATES))
    arguments = parser.parse_args()
    sizes = (arguments.heads, arguments.key_dim, arguments.value_dim)
    large = make_inputs(arguments.batch, arguments.length, *sizes)
    small = make_inputs(1, 1000, 2, *sizes[1:])
    expected = outputs_and_gradients(chunk_gated_delta_rule, [x.double() for x in small])
    best: dict[str, tuple[float, Configuration]] = {}
    for kernel in arguments.kernel or CANDIDATES:
        for candidate in itertools.starmap(Configuration, CANDIDATES[kernel]):
            with pinned(kernel, candidate):
                time_ms, error = measure(kernel, large, small, expected)
            print(f"{kernel:26} {candidate!s:84} {time_ms:8.3f} ms  error {error:.1e}", flush=True)
            if error <= ERROR_BOUND and time_ms < best.get(kernel, (float("inf"),))[0]:
                best[kernel] = (time_ms, candidate)
    for kernel, (time_ms, found) in best.items():
        print(f'"{kernel}": Pinned({found!r}, "measured", "{time_ms:.3f} ms"),')


def make_inputs(batch: int, length: int, heads: int, key_dim: int, value_dim: int) -> list[Tensor]:
    """q, k, v, g, beta as in training: random directions, gates of the initial distribution, beta in (0, 2)."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda")

    q, k = (randn(batch, length, heads, key_dim).bfloat16() for _ in range(2))
    g = -16 * torch.rand(heads, device="cuda") * 0.1 * torch.sigmoid(randn(batch, length, heads))
    beta = 2 * torch.sigmoid(randn(batch, length, heads)).bfloat16()
    return [q, k, randn(batch, length, heads, value_dim).bfloat16(), g, beta]


def outputs_and_gradients(rule, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of each input for a fixed output gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, _ = rule(*leaves, normalize_qk=True)
    gradient = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


@contextmanager
def pinned(kernel: Kernel, candidate: Configuration) -> Iterator[None]:
    """The candidate in place of what the tables say, on every architecture."""
    before = {architecture: table[kernel] for architecture, table in configurations.SIXTEEN_BIT.items()}
    for table in configurations.SIXTEEN_BIT.values():
        table[kernel] = Pinned(candidate, "guess", "candidate")
    try:
        yield
    finally:
        for architecture, entry in before.items():
            configurations.SIXTEEN_BIT[architecture][kernel] = entry


def measure(kernel: Kernel, large: list[Tensor], small: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Median milliseconds of the kernel on `large`, and the worst relative error on `small`; infinite if it won't run."""
    try:
        actual = outputs_and_gradients(triton_gated_delta_rule, small)
        error = max(((a - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True))
        return time_of(kernel, large), error if error == error else float("inf")
    except (triton.runtime.errors.OutOfResources, triton.CompilationError, RuntimeError) as failure:
        print(f"{kernel}: {str(failure).splitlines()[0]}")
        return float("inf"), float("inf")


def time_of(kernel: Kernel, inputs: list[Tensor]) -> float:
    """Median milliseconds of one launch among `REPEATS` passes, forward or backward, of the profiler's trace."""
    options = (None, None, None)
    scale = inputs[0].shape[-1] ** -0.5
    out, _, saved = run_forward(*inputs, *options, scale, True, False)

    def run() -> None:
        if kernel in ("intra_chunk", "scan_states"):
            run_forward(*inputs, *options, scale, True, False)
        else:
            run_backward(out, None, *inputs, *options, saved, scale, True)

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    name = "scan_states" if kernel == "scan_states_for_backward" else kernel
    return statistics.median(e.device_time for e in trace.events() if e.name == name) / 1e3


if __name__ == "__main__":
    main()
