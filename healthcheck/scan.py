"""One look at this machine's GPUs, as a table or as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from healthcheck.checks.catalogue import findings
from healthcheck.checks.verdict import Status, Verdict
from healthcheck.telemetry import NodeSnapshot, Skipped

_MARKS = {Status.PASSED: "ok", Status.FAILED: "FAIL", Status.SKIPPED: "skip"}


def as_json(snapshot: NodeSnapshot, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "gpus": len(snapshot.gpus),
        "driver": _text(snapshot.driver),
        "names": [_text(gpu.identity.name) for gpu in snapshot.gpus],
        "checks": [
            {"check": v.check, "gpu": v.gpu, "status": v.status.value, **({"reason": v.reason} if v.reason else {})}
            for v in verdicts
        ],
        "findings": [finding.as_json() for finding in findings(verdicts)],
    }


def _text(value: object) -> str:
    return f"unknown ({value.reason})" if isinstance(value, Skipped) else str(value)


def as_table(snapshot: NodeSnapshot, verdicts: list[Verdict]) -> str:
    """Checks down, GPUs across, then each finding in words, then why checks were skipped."""
    names = Counter(_text(gpu.identity.name) for gpu in snapshot.gpus)
    title = ", ".join(f"{count} x {name}" for name, count in names.items())
    parts = [f"{title}, driver {_text(snapshot.driver)}", _grid(snapshot, verdicts)]
    found = [
        f"{finding.severity.value:8} {_where(finding.gpu):6} {finding.action.value}: {finding.sentence}"
        for finding in findings(verdicts)
    ]
    parts.append("\n".join(found) if found else "No finding.")
    reasons = Counter((v.check, v.reason) for v in verdicts if v.status is Status.SKIPPED)
    if reasons:
        parts.append("Skipped, which is not passed:\n" + "\n".join(f"  {c}: {r}" for c, r in reasons))
    return "\n\n".join(parts)


def _where(gpu: int) -> str:
    return "node" if gpu < 0 else f"GPU {gpu}"


def _grid(snapshot: NodeSnapshot, verdicts: list[Verdict]) -> str:
    columns = [-1, *(gpu.index for gpu in snapshot.gpus)]
    marks = {(v.check, v.gpu): _MARKS[v.status] for v in verdicts}
    names = list(dict.fromkeys(v.check for v in verdicts))
    width = max(len(name) for name in names)
    rows = [" ".join([f"{'':{width}}", *(f"{_where(gpu):>5}" for gpu in columns)])]
    rows += [" ".join([f"{name:{width}}", *(f"{marks.get((name, gpu), ''):>5}" for gpu in columns)]) for name in names]
    return "\n".join(rows)
