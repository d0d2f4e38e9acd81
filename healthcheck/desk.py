"""Where a monitor's threads bring what they saw, and the lines that come of it.

Pure but for its lock: snapshots, XIDs and the hang verdict go in, messages for the supervisor come out through `say`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from healthcheck.baseline import Baseline
from healthcheck.checks.catalogue import findings, run_checks
from healthcheck.checks.verdict import Status
from healthcheck.finding import Action, Finding, Severity
from healthcheck.finding_ledger import FindingLedger
from healthcheck.spec import NodeSpec
from healthcheck.telemetry import NodeSnapshot, XidEvent
from healthcheck.xid_fold import XidFold

Message = dict[str, Any]
HANG = Finding(
    "nvml_deadline",
    "nvml_hang",
    Severity.FATAL,
    Action.REBOOT_NODE,
    "NVML does not answer within its deadline: no answer is evidence, never health.",
)


def message(finding: Finding) -> Message:
    return {"type": "finding", **finding.as_json()}


def cleared(finding: Finding) -> Message:
    """A finding that is over recommends nothing any more, also to a reader that does not know `cleared`."""
    return {**message(replace(finding, severity=Severity.INFO, action=Action.NONE)), "cleared": True}


class Desk:
    """One lock, held only for bookkeeping, so that a look that blocks keeps nobody from reporting XIDs."""

    def __init__(self, spec: NodeSpec, say: Callable[[Message], None]) -> None:
        self._spec = spec
        self._say = say
        self._lock = threading.Lock()
        self._ledger = FindingLedger()
        self._xids = XidFold()
        self._baseline = Baseline()
        self._recovery: dict[int, int] = {}  # GPU -> recovery action last seen
        self._hung = False

    def take_xid(self, event: XidEvent) -> bool:
        """True when it was worth a line, and so worth a look at the GPU."""
        with self._lock:
            said = self._xids.add(event)
            if said is not None:
                self._say(message(said))
            return said is not None

    def take_look(self, snapshot: NodeSnapshot) -> None:
        """Judge a look and say what is new, changed or over."""
        with self._lock:
            self._recovered(snapshot)
            verdicts = run_checks(snapshot, self._baseline.oldest, self._spec)
            self._baseline.add(snapshot)
            checked = [(v.check, v.gpu) for v in verdicts if v.status is not Status.SKIPPED]
            if self._hung:
                self._hung = False
                checked.append((HANG.check, HANG.gpu))
            said, over = self._ledger.update(findings(verdicts), checked)
            for finding in said:
                self._say(message(finding))
            self._say_cleared([*over, *self._xids.expire(snapshot.at_ns)])

    def judge(self, snapshot: NodeSnapshot, idle: bool) -> list[Finding]:
        """What every check and every XID still standing say of a look, for a probe."""
        with self._lock:
            verdicts = run_checks(snapshot, self._baseline.oldest, replace(self._spec, idle=idle))
            return [*findings(verdicts), *self._xids.active()]

    def take_hang(self) -> None:
        with self._lock:
            if not self._hung:
                self._hung = True
                self._ledger.update([*self._ledger.standing(), HANG], [])
                self._say(message(HANG))

    def was_reset(self, gpu: int | None = None) -> None:
        """Somebody reset the GPU (None: rebooted the node): XIDs of before and bases of rates no longer hold."""
        with self._lock:
            self._baseline.clear()
            self._say_cleared(self._xids.forget(gpu))

    def _recovered(self, snapshot: NodeSnapshot) -> None:
        """A recovery that the driver asked for and asks for no more was carried out, whoever did it."""
        for gpu in snapshot.gpus:
            if not isinstance(gpu.recovery_action, int):
                continue
            if self._recovery.get(gpu.index, 0) != 0 and gpu.recovery_action == 0:
                self._say_cleared(self._xids.forget(gpu.index))
            self._recovery[gpu.index] = gpu.recovery_action

    def _say_cleared(self, over: Iterable[Finding]) -> None:
        for finding in over:
            self._say(cleared(finding))
