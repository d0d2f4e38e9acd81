"""Errors of the GPU's memories, their repair, and memory that nobody owns."""

from __future__ import annotations

from healthcheck.checks.verdict import Outcome, found, growth, seconds_between, shown
from healthcheck.finding import Action, Finding, Severity
from healthcheck.spec import MIB, NodeSpec
from healthcheck.telemetry import GpuSnapshot, Skipped


def uncorrectable_ecc(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    count = now.ecc.uncorrected
    if isinstance(count, Skipped):
        return count
    if count == 0:
        return []
    sentence = "Uncorrectable memory errors since the last reset: data on this GPU can't be trusted before the next."
    say = (Severity.FATAL, Action.RESET_GPU, sentence, now.index)
    return [found("uncorrectable_ecc", "ecc_uncorrectable", *say, {"count": count})]


def corrected_ecc_rate(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    """The rate, not the count: every large part corrects a bit now and then."""
    if before is None or now.at_ns == before.at_ns:
        return Skipped("a rate needs two looks")
    risen = growth(now.ecc.corrected, before.ecc.corrected)
    if isinstance(risen, Skipped):
        return risen
    per_s = risen / seconds_between(now, before)
    if per_s < spec.corrected_ecc_watch_per_s:
        return []
    storm = per_s >= spec.corrected_ecc_inspect_per_s
    severity, action = (Severity.ERROR, Action.INSPECT) if storm else (Severity.WARNING, Action.WATCH)
    sentence = "Corrected memory errors come in a storm." if storm else "Corrected memory errors come often."
    evidence = {"per_s": f"{per_s:.1f}"}
    return [found("corrected_ecc_rate", "ecc_corrected_rate", severity, action, sentence, now.index, evidence)]


def sram_threshold(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    exceeded = now.ecc.sram_threshold_exceeded
    if isinstance(exceeded, Skipped):
        return exceeded
    if not exceeded:
        return []
    sentence = "Uncorrectable errors of on-chip memory are past the part's limit: run field diagnostics."
    return [found("sram_threshold", "sram_threshold", Severity.ERROR, Action.INSPECT, sentence, now.index)]


def row_remap(now: GpuSnapshot, _before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    rows = now.repair
    if isinstance(rows.rows_failed, Skipped):
        return rows.rows_failed
    counts = {"corrected": shown(rows.rows_corrected), "uncorrected": shown(rows.rows_uncorrected)}

    def say(cause: str, severity: Severity, action: Action, sentence: str) -> Finding:
        return found("row_remap", cause, severity, action, sentence, now.index, counts)

    findings = []
    if rows.rows_failed:
        sentence = "A memory row could not be remapped: the part has no spares left."
        findings.append(say("row_remap_failure", Severity.FATAL, Action.REPLACE, sentence))
    if rows.rows_pending is True:
        sentence = "A memory row waits for a reset to be remapped."
        findings.append(say("row_remap_pending", Severity.WARNING, Action.DRAIN_AND_RESET, sentence))
    if isinstance(rows.rows_uncorrected, int) and rows.rows_uncorrected >= spec.remapped_rows_warning:
        sentence = "Many memory rows were remapped after uncorrectable errors."
        findings.append(say("row_remap_count", Severity.WARNING, Action.WATCH, sentence))
    return findings


def repair(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    channel, tpc = now.repair.channel_pending, now.repair.tpc_pending
    if isinstance(channel, Skipped):
        return channel
    waiting = [name for name, flag in (("memory channel", channel), ("compute cluster", tpc)) if flag is True]
    if not waiting:
        return []
    sentence = f"The GPU waits for a reset to repair itself: {' and '.join(waiting)}."
    return [found("repair", "repair_pending", Severity.WARNING, Action.DRAIN_AND_RESET, sentence, now.index)]


def leaked_memory(now: GpuSnapshot, _before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    """On a node that should be idle: memory in use, with or without a process that is seen to own it.

    Skipped while a job may run: in a container the driver shows no process of another PID namespace, so that memory
    without one is no evidence.
    """
    if not spec.idle:
        return Skipped("the node may hold a job")
    used, processes = now.memory.used_bytes, now.processes
    if isinstance(used, Skipped):
        return used
    if not isinstance(processes, Skipped) and processes:
        evidence = {"pids": ",".join(str(process.pid) for process in processes)}
        sentence = "Processes hold the GPU although the node should be idle: end them."
        return [found("leaked_memory", "stray_process", Severity.ERROR, Action.INSPECT, sentence, now.index, evidence)]
    if used <= spec.idle_memory_bytes:
        return []
    sentence = "GPU memory is in use and no process is seen to own it: reset the GPU."
    evidence = {"used_mib": str(used // MIB)}
    return [found("leaked_memory", "leaked_memory", Severity.ERROR, Action.RESET_GPU, sentence, now.index, evidence)]
