"""Hang: processes live, beats come, and no step is made. Progress is not heartbeat.

The deadline is learned from the run's own steps: a robust centre and spread with a floor, because the first steps, an
evaluation or a slow file system must not look like a hang. One rank stopped stalls all; who it was is found by the
recovery: survivors answer `leave`, the culprit does not.
"""

from __future__ import annotations

import statistics
from collections import deque

FLOOR_S = 10.0  # below this a garbage collection or a busy machine is taken for a hang
CEILING_S = 1800.0
UNKNOWN_S = 120.0  # while the run's own steps say nothing of what it does
SPREADS = 10.0  # deadline = median + SPREADS * scaled median absolute deviation, and at least MEDIANS medians
MEDIANS = 10.0
MAD_TO_SIGMA = 1.4826  # for a normal distribution
WINDOW = 64


class HangDetector:
    """One run. Times are nanoseconds of the daemon's clock."""

    def __init__(self, floor_s: float = FLOOR_S) -> None:
        self._floor_s = floor_s
        self._attempt = 0
        self._step = 0
        self.advanced_ns = 0
        self._evaluating = False
        self._durations_s: deque[float] = deque(maxlen=WINDOW)

    def observe(self, attempt: int, step: int, now_ns: int) -> None:
        """`step` is what all ranks of the attempt have completed."""
        if attempt != self._attempt:
            self._attempt, self._step, self.advanced_ns = attempt, step, now_ns
        elif step > self._step:
            self._durations_s.append((now_ns - self.advanced_ns) / 1e9 / (step - self._step))
            self._step, self.advanced_ns = step, now_ns

    def evaluating(self, said_ns: int) -> None:
        """A rank said then that it evaluates, as it does again with each stretch of it, which counts like a step; 0: none does.

        The first stretch may compile the model once more, which the run's steps say nothing of.
        """
        self._evaluating = said_ns > 0
        if self.advanced_ns:
            self.advanced_ns = max(self.advanced_ns, said_ns)

    def stood_still(self, gap_ns: int, now_ns: int) -> None:
        """The daemon itself did not run for that long and saw no step: that is no hang of the run."""
        if self.advanced_ns:
            self.advanced_ns = min(self.advanced_ns + gap_ns, now_ns)

    def deadline_s(self) -> float:
        """Seconds without a step after which the run hangs."""
        if len(self._durations_s) < 3 or self._evaluating:
            return max(self._floor_s, UNKNOWN_S)
        centre = statistics.median(self._durations_s)
        spread = MAD_TO_SIGMA * statistics.median(abs(d - centre) for d in self._durations_s)
        return min(CEILING_S, max(self._floor_s, centre + SPREADS * spread, MEDIANS * centre))

    def verdict(self, now_ns: int) -> str | None:
        """The evidence, as a sentence; None while all is well."""
        silent_s = (now_ns - self.advanced_ns) / 1e9
        if not self.advanced_ns or silent_s <= self.deadline_s():
            return None
        return f"no step since step {self._step} for {silent_s:.1f} s; its steps allow {self.deadline_s():.1f} s"
