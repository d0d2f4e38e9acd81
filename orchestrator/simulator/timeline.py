"""Virtual time: a heap of calls. Nothing in a simulation reads a real clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

MS = 1_000_000  # nanoseconds
S = 1_000_000_000
START_NS = 1_000 * S  # not 0: in events 0 means unknown


class Timeline:
    """Calls due at the same time run in the order in which they were planned, so a seed has one history."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self._heap: list[tuple[int, int, Callable[..., None], tuple]] = []
        self._planned = 0

    def after(self, delay_ns: int, call: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._planned, call, args))
        self._planned += 1

    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def turn(self) -> None:
        """Run the next call at its time."""
        at_ns, _, call, args = heapq.heappop(self._heap)
        self.now_ns = max(self.now_ns, at_ns)
        call(*args)

    def advance(self, to_ns: int) -> None:
        """Run everything due before or at `to_ns` and stand there."""
        while self._heap and self._heap[0][0] <= to_ns:
            self.turn()
        self.now_ns = max(self.now_ns, to_ns)
