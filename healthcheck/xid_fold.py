"""Repeated XIDs folded into one finding a GPU and XID. Pure: events in, changes out; time comes with the events.

A burst costs one dictionary look-up a repeat, and a line at each power of ten. A repeat after a quiet spell is a new
occurrence and is said again, since the application that the first one killed has been restarted meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from healthcheck.finding import Finding
from healthcheck.nvml.abi import UNKNOWN_XID
from healthcheck.telemetry import XidEvent
from healthcheck.xid import REMAP_FAILED, REMAP_RECORDED, finding

QUIET_NS = 60 * 10**9  # after this long without a repeat, the next is a new occurrence
FORGET_NS = 300 * 10**9  # a finding that needs no repair of the GPU is over after this long
MAX_ENTRIES = 512  # distinct GPU and XID pairs; beyond it new numbers share one entry a GPU


@dataclass
class _Entry:
    last: XidEvent
    count: int
    said: Finding


class XidFold:
    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, event: XidEvent) -> Finding | None:
        """The finding to report, or None when the repeat says nothing new."""
        key = self._key(event)
        entry = self._entries.get(key)
        if entry is None:
            said = finding(event, 1, self._remapped(event.gpu))
            self._entries[key] = _Entry(event, 1, said)
            return said
        quiet_ns = event.at_ns - entry.last.at_ns
        verdict_moved = event.recovery_action != entry.last.recovery_action
        entry.last, entry.count = event, entry.count + 1
        if quiet_ns < QUIET_NS and not verdict_moved and not _is_power_of_ten(entry.count):
            return None
        entry.said = finding(event, entry.count, self._remapped(event.gpu))
        return entry.said

    def active(self) -> list[Finding]:
        return [entry.said for entry in self._entries.values()]

    def count(self, gpu: int, xid: int) -> int:
        entry = self._entries.get((gpu, xid))
        return entry.count if entry else 0

    def expire(self, now_ns: int) -> list[Finding]:
        """Drop what is over by itself; what asks for a repair stays until `forget`."""
        over = [
            key
            for key, entry in self._entries.items()
            if not entry.said.blocks and now_ns - entry.last.at_ns >= FORGET_NS
        ]
        return [self._entries.pop(key).said for key in over]

    def forget(self, gpu: int | None = None) -> list[Finding]:
        """The GPU (None: the node) was reset: what was said of it before no longer holds."""
        gone = [key for key in self._entries if gpu is None or key[0] == gpu]
        return [self._entries.pop(key).said for key in gone]

    def _key(self, event: XidEvent) -> tuple[int, int]:
        key = (event.gpu, event.xid)
        full = len(self._entries) >= MAX_ENTRIES and key not in self._entries
        return (event.gpu, UNKNOWN_XID) if full else key

    def _remapped(self, gpu: int) -> bool:
        return (gpu, REMAP_RECORDED) in self._entries or (gpu, REMAP_FAILED) in self._entries


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"
