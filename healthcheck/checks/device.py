"""Is every GPU there, does it answer, and what does its driver ask for?"""

from __future__ import annotations

from healthcheck.checks.verdict import Outcome, found, shown
from healthcheck.finding import Action, Severity
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import GpuSnapshot, HandleState, NodeSnapshot, Skipped
from healthcheck.xid import recovery


def device_count(now: NodeSnapshot, _before: NodeSnapshot | None, spec: NodeSpec) -> Outcome:
    """The driver's GPUs against the specification, or else, with less weight, against the PCI bus.

    A container may have been given a part of the node's GPUs, while it sees the whole bus.
    """
    seen, evidence = len(now.gpus), {"on_pci_bus": shown(now.pci_gpus)}
    if spec.gpus:
        sentence = f"The driver shows {seen} of {spec.gpus} GPUs: reboot, and replace what stays away."
        say = (Severity.FATAL, Action.REBOOT_NODE, sentence)
        return [found("device_count", "gpu_missing", *say, -1, evidence)] if seen < spec.gpus else []
    if isinstance(now.pci_gpus, Skipped):
        return now.pci_gpus
    if seen >= now.pci_gpus:
        return []
    sentence = f"The driver shows {seen} of the {now.pci_gpus} GPUs on the PCI bus; name the profile to be strict."
    return [found("device_count", "gpu_hidden", Severity.WARNING, Action.WATCH, sentence, -1, evidence)]


_HANDLES = {
    HandleState.LOST: ("gpu_lost", Action.REBOOT_NODE, "The GPU no longer answers; only a reboot can bring it back."),
    HandleState.RESET_REQUIRED: ("reset_required", Action.RESET_GPU, "The GPU refuses to work before it is reset."),
    HandleState.FAILED: ("no_answer", Action.INSPECT, "The driver gives no access to the GPU."),
}


def handle(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    if now.handle in _HANDLES:
        cause, action, sentence = _HANDLES[now.handle]
        bus_id = now.identity.pci_bus_id
        evidence = {"pci_bus_id": bus_id} if isinstance(bus_id, str) else {}
        return [found("handle", cause, Severity.FATAL, action, sentence, now.index, evidence)]
    if now.errors:
        sentence = "NVML calls fail that no healthy GPU fails: no answer is evidence, never health."
        evidence = {"errors": "; ".join(now.errors)}
        return [found("handle", "nvml_error", Severity.ERROR, Action.INSPECT, sentence, now.index, evidence)]
    return []


def recovery_action(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    """The driver's own summary. Codes beyond those we know are not healthy."""
    code = now.recovery_action
    if isinstance(code, Skipped):
        return code
    if code == 0:
        return []
    action, severity, sentence = recovery(code)
    return [found("recovery_action", f"recovery_action_{code}", severity, action, sentence, now.index, {"code": code})]
