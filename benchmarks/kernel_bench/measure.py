"""Times, peak memory and errors of a case's implementations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_bench.case import Case, Implementation

# Keeps the GPU busy, about a millisecond, while the host queues a call: without it, operations of some microseconds are
# timed by how fast Python launches them.
_HEAD_START_CYCLES = 2_000_000
_WARM_UP = 3


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Medians over `rounds`, implementations taking turns, for the forward pass and for both passes together."""
    row: dict[str, Any] = {"operation": case.operation, "shape": case.shape, "implementations": {}}
    passes = {"forward": _forward(case)} if case.backward is None else {"forward": _forward(case), "both": _both(case)}
    for name, calls in passes.items():
        times = paired_ms(calls, case.prepare, rounds)
        for implementation, ms in times.items():
            row["implementations"].setdefault(implementation, {})[f"{name}_ms"] = ms
    for implementation, call in list(passes.values())[-1].items():
        row["implementations"][implementation]["peak_gib"] = peak_gib(call, case.prepare)
    row["forward_floor_ms"] = case.forward.floor_ms
    if case.backward is not None:
        row["both_floor_ms"] = case.forward.floor_ms + case.backward.floor_ms
    if case.reference is not None:
        row["error"] = largest_error(case.implementations["ours"], *case.reference)
    return row


def paired_ms(calls: dict[str, Callable[[], object]], prepare: Callable[[], None], rounds: int) -> dict[str, float]:
    """The median time of each call on the GPU, the calls taking turns so that a drift meets all alike."""
    for call in calls.values():
        for _ in range(_WARM_UP):
            prepare()
            call()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            prepare()
            torch.cuda._sleep(_HEAD_START_CYCLES)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: statistics.median(s.elapsed_time(e) for s, e in pairs) for name, pairs in events.items()}


def peak_gib(call: Callable[[], object], prepare: Callable[[], None]) -> float:
    """Device memory that a call takes beside its inputs, at most, in GiB."""
    prepare()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def largest_error(run: Implementation, reference: Implementation, inputs: Sequence[Tensor]) -> float:
    """The largest ||actual - expected|| / ||expected|| over outputs and gradients; expected is computed in float64."""
    wide = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
    errors = [
        (a.double() - e).norm() / e.norm()
        for a, e in zip(_results(run, inputs), _results(reference, wide), strict=True)
    ]
    return torch.stack(errors).max().item()


def _results(run: Implementation, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs = _tensors(run(*inputs))
    leaves = [x for x in inputs if x.requires_grad]
    if not leaves:
        return outputs
    return [*outputs, *torch.autograd.grad(outputs, leaves, _upstream(outputs))]


def _tensors(returned: Tensor | Sequence[Tensor | None]) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else [x for x in returned if x is not None]


def _upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    draw = (torch.randn(y.shape, generator=generator, device=y.device) for y in outputs)
    return [x.to(y.dtype) for x, y in zip(draw, outputs, strict=True)]


def _forward(case: Case) -> dict[str, Callable[[], object]]:
    return {name: lambda run=run: run(*case.inputs) for name, run in case.implementations.items()}


def _both(case: Case) -> dict[str, Callable[[], object]]:
    leaves = [x for x in case.inputs if x.requires_grad]

    def both(name: str, run: Implementation) -> Callable[[], object]:
        upstream = _upstream(_tensors(run(*case.inputs)))
        wanted = [*leaves, *case.parameters.get(name, ())]
        return lambda: torch.autograd.grad(_tensors(run(*case.inputs)), wanted, upstream)

    return {name: both(name, run) for name, run in case.implementations.items()}
