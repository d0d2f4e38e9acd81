"""What a check answers: passed, failed with findings, or skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from healthcheck.finding import Action, Finding, Severity
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import GpuSnapshot, NodeSnapshot, Reading, Skipped

Outcome = list[Finding] | Skipped
GpuCheck = Callable[[GpuSnapshot, GpuSnapshot | None, NodeSpec], Outcome]
NodeCheck = Callable[[NodeSnapshot, NodeSnapshot | None, NodeSpec], Outcome]


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """`gpu` is -1 for a check of the node. `reason` is that of a skipped check."""

    check: str
    gpu: int
    status: Status
    findings: tuple[Finding, ...] = ()
    reason: str = ""


def verdict(check: str, gpu: int, outcome: Outcome) -> Verdict:
    if isinstance(outcome, Skipped):
        return Verdict(check, gpu, Status.SKIPPED, reason=outcome.reason)
    return Verdict(check, gpu, Status.FAILED if outcome else Status.PASSED, tuple(outcome))


def found(
    check: str,
    cause: str,
    severity: Severity,
    action: Action,
    sentence: str,
    gpu: int,
    evidence: Mapping[str, object] | None = None,
) -> Finding:
    return Finding(check, cause, severity, action, sentence, gpu, {k: str(v) for k, v in (evidence or {}).items()})


def shown(value: Reading[int]) -> str:
    return f"unknown ({value.reason})" if isinstance(value, Skipped) else str(value)


def growth(now: Reading[int], before: Reading[int]) -> Reading[int]:
    """How far a counter has risen between two looks; a counter that fell was reset in between."""
    if isinstance(now, Skipped):
        return now
    if isinstance(before, Skipped):
        return before
    return now - before if now >= before else Skipped("the counter started again")


def seconds_between(now: GpuSnapshot, before: GpuSnapshot) -> float:
    return (now.at_ns - before.at_ns) / 1e9
