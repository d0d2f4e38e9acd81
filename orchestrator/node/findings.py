"""Which findings are news. A finding that stands is told again only after a while: it is still true, but no longer new."""

from __future__ import annotations

from orchestrator.recovery.events import Finding

REMINDER_NS = 300 * 10**9


class Novelty:
    """A finding is the same when check, cause and GPU are, and news when severity, action or sentence has changed."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, int], tuple[Finding, int]] = {}

    def is_news(self, finding: Finding, now_ns: int) -> bool:
        key = finding.check, finding.cause, finding.gpu
        told = self._told.get(key)
        if told and _substance(told[0]) == _substance(finding) and now_ns - told[1] < REMINDER_NS:
            return False
        self._told[key] = finding, now_ns
        return True

    def cleared(self, finding: Finding) -> None:
        """It is over: should it come back, that is news."""
        self._told.pop((finding.check, finding.cause, finding.gpu), None)

    def forget(self) -> None:
        """After a probe, a reset or a reboot whatever is still wrong is news."""
        self._told.clear()


def _substance(finding: Finding) -> tuple[str, str, str]:
    return finding.severity, finding.action, finding.sentence


def monitor_silent(limit_s: float) -> Finding:
    return Finding(
        check="monitor_silent",
        cause="no_round",
        severity="error",
        action="inspect",
        sentence=f"The health monitor did not finish a round within {limit_s:.0f} s: a GPU or its driver may hang.",
    )


def monitor_dies(times: int, how: str, log: str) -> Finding:
    return Finding(
        check="monitor_dies",
        cause="restarts",
        severity="error",
        action="inspect",
        sentence="The health monitor ended three times within a minute: nobody watches this node's GPUs.",
        evidence={"times": str(times), "last": how, "log": log},
    )


def probe_silent(limit_s: float) -> Finding:
    return Finding(
        check="probe_silent",
        cause="no_answer",
        severity="error",
        action="inspect",
        sentence=f"The probe did not answer within {limit_s:.0f} s.",
    )


def nothing_to_probe() -> Finding:
    return Finding(
        check="probe",
        cause="no_gpu",
        severity="info",
        action="none",
        sentence="The node has no GPU, so none was checked.",
    )
