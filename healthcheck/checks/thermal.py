"""Heat, and hardware that slows itself down. Never the absolute temperature, never the software power cap.

A GPU at full load sits at its power cap all day, and temperatures without the part's own limit say nothing.
"""

from __future__ import annotations

from healthcheck.checks.verdict import Outcome, found, growth, seconds_between
from healthcheck.finding import Action, Finding, Severity
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import GpuSnapshot, Reading, Skipped


def thermal_margin(now: GpuSnapshot, _before: GpuSnapshot | None, _spec: NodeSpec) -> Outcome:
    margin, slowdown = now.thermal.margin_c, now.thermal.slowdown_margin_c
    if isinstance(margin, Skipped):
        return margin
    if isinstance(slowdown, Skipped):
        return slowdown
    if margin > slowdown:
        return []
    sentence = "The GPU is at the temperature at which it slows itself down: check its cooling."
    evidence = {"margin_c": margin, "slowdown_margin_c": slowdown}
    return [found("thermal_margin", "thermal_margin", Severity.ERROR, Action.INSPECT, sentence, now.index, evidence)]


def hardware_throttling(now: GpuSnapshot, before: GpuSnapshot | None, spec: NodeSpec) -> Outcome:
    """The share of the window that the hardware held the clocks back, by the driver's counters."""
    if before is None or seconds_between(now, before) < 0.9 * spec.throttle_window_s:
        return Skipped(f"needs two looks {spec.throttle_window_s:.0f} s apart")
    then, clocks = before.clocks, now.clocks
    causes: list[tuple[str, str, Reading[int]]] = [
        ("thermal_slowdown", "by heat", growth(clocks.thermal_slowdown_ns, then.thermal_slowdown_ns)),
        ("power_brake", "by the power brake", growth(clocks.power_brake_ns, then.power_brake_ns)),
    ]
    skipped = [held for _, _, held in causes if isinstance(held, Skipped)]
    if len(skipped) == len(causes):
        return skipped[0]
    findings: list[Finding] = []
    for cause, words, held_ns in causes:
        share = 0.0 if isinstance(held_ns, Skipped) else held_ns / 1e9 / seconds_between(now, before)
        if share >= spec.throttled_share:
            sentence = f"The hardware holds the clocks back {words} most of the time."
            evidence = {"share": f"{share:.2f}", "reasons": _mask(clocks.event_reasons)}
            say = (Severity.ERROR, Action.INSPECT, sentence, now.index)
            findings.append(found("hardware_throttling", cause, *say, evidence))
    return findings


def _mask(reasons: Reading[int]) -> str:
    return "unknown" if isinstance(reasons, Skipped) else f"{reasons:#x}"
