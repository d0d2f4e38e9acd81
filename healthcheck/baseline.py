"""The earlier look that rates are measured against. Pure."""

from __future__ import annotations

from collections import deque

from healthcheck.telemetry import NodeSnapshot

WINDOW_NS = 600 * 10**9  # the longest window that a check asks for (hardware throttling)
SPACING_NS = 60 * 10**9


class Baseline:
    """Keeps one look a minute for ten minutes, and hands out the oldest."""

    def __init__(self) -> None:
        self._kept: deque[NodeSnapshot] = deque()

    def add(self, snapshot: NodeSnapshot) -> None:
        while self._kept and snapshot.at_ns - self._kept[0].at_ns > WINDOW_NS:
            self._kept.popleft()
        if not self._kept or snapshot.at_ns - self._kept[-1].at_ns >= SPACING_NS:
            self._kept.append(snapshot)

    @property
    def oldest(self) -> NodeSnapshot | None:
        return self._kept[0] if self._kept else None

    def clear(self) -> None:
        self._kept.clear()
