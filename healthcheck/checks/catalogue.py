"""Every check, by name, and one pass over a node. The monitor and the one-shot scan run the same."""

from __future__ import annotations

from collections.abc import Iterable

from healthcheck.checks import device, links, memory, thermal
from healthcheck.checks.verdict import GpuCheck, NodeCheck, Verdict, verdict
from healthcheck.finding import Finding
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import GpuSnapshot, HandleState, NodeSnapshot, Skipped

NODE_CHECKS: dict[str, NodeCheck] = {"device_count": device.device_count}

# Run on every GPU that answers; `handle` alone also judges one that does not.
GPU_CHECKS: dict[str, GpuCheck] = {
    "handle": device.handle,
    "recovery_action": device.recovery_action,
    "uncorrectable_ecc": memory.uncorrectable_ecc,
    "corrected_ecc_rate": memory.corrected_ecc_rate,
    "sram_threshold": memory.sram_threshold,
    "row_remap": memory.row_remap,
    "repair": memory.repair,
    "thermal_margin": thermal.thermal_margin,
    "hardware_throttling": thermal.hardware_throttling,
    "nvlink": links.nvlink,
    "fabric": links.fabric,
    "pcie": links.pcie,
    "leaked_memory": memory.leaked_memory,
}


def run_checks(now: NodeSnapshot, before: NodeSnapshot | None, spec: NodeSpec) -> list[Verdict]:
    """`before` is an earlier look at the same node, the base of every rate; None when there is none."""
    verdicts = [verdict(name, -1, check(now, before, spec)) for name, check in NODE_CHECKS.items()]
    earlier = {gpu.index: gpu for gpu in before.gpus} if before else {}
    for gpu in now.gpus:
        verdicts += _check_gpu(gpu, earlier.get(gpu.index), spec)
    return verdicts


def _check_gpu(gpu: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> list[Verdict]:
    if before is not None and before.identity.uuid != gpu.identity.uuid:
        before = None  # another part, so that no difference of counters means anything
    answers = gpu.handle is HandleState.OK
    silent = Skipped("the GPU gives no answer")
    return [
        verdict(name, gpu.index, check(gpu, before, spec) if answers or name == "handle" else silent)
        for name, check in GPU_CHECKS.items()
    ]


def findings(verdicts: Iterable[Verdict]) -> list[Finding]:
    return [finding for verdict in verdicts for finding in verdict.findings]
