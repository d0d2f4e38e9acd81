"""Reports that the daemon has not acknowledged yet, in the order of their cursors."""

from __future__ import annotations

import msgspec
import structlog

from orchestrator.link.messages import Report
from orchestrator.recovery.events import AnyEvent, Finding, NodeFindings

log = structlog.get_logger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """`observed_ns` and `fault_ns` are on the supervisor's monotonic clock; a `fault_ns` of 0 is unknown."""

    cursor: int
    event: AnyEvent
    observed_ns: int
    fault_ns: int = 0

    def report(self, now_ns: int) -> Report:
        return Report(
            cursor=self.cursor,
            event=self.event,
            age_ns=max(0, now_ns - self.observed_ns),
            fault_age_ns=max(0, now_ns - self.fault_ns) if self.fault_ns else 0,
        )


class Outbox:
    """Holds at most `capacity` reports. When it is full, the two oldest reports of findings become one.

    Without two of those the oldest report is lost, with a log line; the daemon learns by the next Hello what lives.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._entries: dict[int, Entry] = {}
        self._cursor = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, event: AnyEvent, *, observed_ns: int, fault_ns: int = 0) -> Entry:
        if len(self._entries) >= self._capacity:
            self._make_room()
        self._cursor += 1
        entry = Entry(self._cursor, event, observed_ns, fault_ns)
        self._entries[entry.cursor] = entry
        return entry

    def acknowledge(self, cursor: int) -> None:
        for held in list(self._entries):
            if held > cursor:
                break
            del self._entries[held]

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def _make_room(self) -> None:
        findings = (entry for entry in self._entries.values() if isinstance(entry.event, NodeFindings))
        older, newer = next(findings, None), next(findings, None)
        if older is None or newer is None:
            lost = next(iter(self._entries.values()))
            log.error("report lost", why=f"{self._capacity} reports wait for a daemon", lost=type(lost.event).__name__)
            del self._entries[lost.cursor]
            return
        # Into the newer one: the daemon may have taken the older cursor already and would pass over more of it.
        del self._entries[older.cursor]
        merged = _merge(older.event, newer.event)
        self._entries[newer.cursor] = Entry(newer.cursor, merged, older.observed_ns, older.fault_ns)


def _merge(older: AnyEvent, newer: AnyEvent) -> NodeFindings:
    assert isinstance(older, NodeFindings)
    assert isinstance(newer, NodeFindings)
    latest: dict[tuple[str, str, int], Finding] = {}
    for finding in (*older.findings, *newer.findings):
        latest[finding.check, finding.cause, finding.gpu] = finding
    return NodeFindings(node=newer.node, findings=tuple(latest.values()))
