"""NVLink, the fabric that joins the GPUs of a node, and PCI Express."""

from __future__ import annotations

from healthcheck.checks.verdict import Outcome, found, growth, seconds_between, shown
from healthcheck.finding import Action, Finding, Severity
from healthcheck.nvml.abi import FABRIC_CONFIGURATION_MASK, FABRIC_CONFIGURATION_SHIFT, FabricHealth, FabricState
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import Fabric, GpuSnapshot, Skipped

_FABRIC_WORDS = {
    FabricHealth.DEGRADED_BANDWIDTH: "degraded bandwidth",
    FabricHealth.ROUTE_RECOVERY: "route recovery in progress",
    FabricHealth.ROUTE_UNHEALTHY: "unhealthy route",
    FabricHealth.ACCESS_TIMEOUT_RECOVERY: "recovery from an access timeout",
}


_ALONE = Skipped("no NVLink is in use and no profile asks for any")


def _stands_alone(now: GpuSnapshot, spec: NodeSpec) -> bool:
    """A GPU that a virtual machine was given alone: its links are down, or not shown, and its fabric never starts."""
    return not spec.nvlinks and (isinstance(now.links, Skipped) or not any(now.links))


def nvlink(now: GpuSnapshot, _before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    links = now.links
    if isinstance(links, Skipped):
        return links
    if _stands_alone(now, spec):
        return _ALONE
    down = [index for index, up in enumerate(links) if not up]
    missing = max(0, spec.nvlinks - len(links))
    if not down and not missing:
        return []
    names = ", ".join(str(link) for link in down)
    sentence = f"NVLinks are down: {names}." if down else f"{missing} of {spec.nvlinks} NVLinks are missing."
    evidence = {"down": names, "expected": spec.nvlinks or len(links), "found": len(links)}
    return [found("nvlink", "nvlink_down", Severity.FATAL, Action.RESET_GPU, sentence, now.index, evidence)]


def fabric(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    state, status = now.fabric.state, now.fabric.status
    if isinstance(state, Skipped):
        return state
    if state == FabricState.NOT_SUPPORTED:
        return Skipped("the GPU is in no fabric")
    if _stands_alone(now, spec):
        return _ALONE
    if state != FabricState.COMPLETED:
        return [_not_joined(now, before, spec)]
    if isinstance(status, int) and status != 0:
        return [
            _fabric_finding(now, "fabric_failed", f"The GPU could not join the fabric (NVML return code {status}).")
        ]
    wrong = _unhealthy(now.fabric)
    if not wrong:
        return []
    return [_fabric_finding(now, "fabric_unhealthy", f"The fabric reports for this GPU: {', '.join(wrong)}.")]


def _not_joined(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Finding:
    """A fabric is set up in seconds after boot; only one that stays in the same state is stuck."""
    stuck = (
        before is not None
        and before.fabric.state == now.fabric.state
        and seconds_between(now, before) >= spec.fabric_patience_s
    )
    if stuck:
        return _fabric_finding(now, "fabric_not_ready", "The GPU has not joined the fabric for too long.")
    sentence = "The GPU has not joined the fabric yet."
    return _fabric_finding(now, "fabric_not_ready", sentence, Severity.WARNING, Action.WATCH)


def _fabric_finding(
    now: GpuSnapshot,
    cause: str,
    sentence: str,
    severity: Severity = Severity.ERROR,
    action: Action = Action.RESTART_FABRIC_MANAGER,
) -> Finding:
    fabric = now.fabric
    mask = shown(fabric.health_mask) if isinstance(fabric.health_mask, Skipped) else f"{fabric.health_mask:#x}"
    evidence = {"state": shown(fabric.state), "status": shown(fabric.status), "health_mask": mask}
    return found("fabric", cause, severity, action, sentence, now.index, evidence)


def _unhealthy(fabric: Fabric) -> list[str]:
    """Fields of the health mask that say true, and any configuration error."""
    mask = fabric.health_mask
    if isinstance(mask, Skipped):
        return []
    wrong = [words for shift, words in _FABRIC_WORDS.items() if (mask >> shift) & 0x3 == 1]
    configuration = (mask >> FABRIC_CONFIGURATION_SHIFT) & FABRIC_CONFIGURATION_MASK
    return [*wrong, f"incorrect configuration {configuration}"] if configuration > 1 else wrong


def pcie(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    """Width always, generation only under load (an idle link saves power), replays by their rate."""
    if isinstance(now.pcie.width, Skipped):
        return now.pcie.width
    found_each = (_width(now), _generation(now, spec), _replays(now, before, spec))
    return [finding for finding in found_each if finding is not None]


def _width(now: GpuSnapshot) -> Finding | None:
    width, full = now.pcie.width, now.pcie.width_max
    if not isinstance(width, int) or not isinstance(full, int) or width >= full:
        return None
    sentence = f"PCI Express runs with {width} of {full} lanes: reseat the board."
    return found("pcie", "pcie_width", Severity.WARNING, Action.INSPECT, sentence, now.index)


def _generation(now: GpuSnapshot, spec: NodeSpec) -> Finding | None:
    busy, generation, best = now.utilization_percent, now.pcie.generation, now.pcie.generation_max
    if not isinstance(busy, int) or not isinstance(generation, int) or not isinstance(best, int):
        return None
    if busy < spec.pcie_busy_percent or generation >= best:
        return None
    sentence = f"PCI Express runs at generation {generation} of {best} under load."
    return found("pcie", "pcie_generation", Severity.WARNING, Action.WATCH, sentence, now.index)


def _replays(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Finding | None:
    if before is None:
        return None
    risen = growth(now.pcie.replays, before.pcie.replays)
    if isinstance(risen, Skipped):
        return None
    # Over less than a minute a single burst would read as a high rate.
    per_min = risen / max(1.0, seconds_between(now, before) / 60)
    if per_min <= spec.pcie_replays_per_min:
        return None
    sentence, evidence = "PCI Express repeats many transfers.", {"per_min": f"{per_min:.1f}"}
    return found("pcie", "pcie_replays", Severity.WARNING, Action.WATCH, sentence, now.index, evidence)
