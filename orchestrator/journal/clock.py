"""The controller's clock: nanoseconds since the Unix epoch that never go back, not even over a restart."""

from __future__ import annotations

import time
from collections.abc import Callable


class JournalClock:
    """max(last journaled time, wall clock at the start) + monotonic time since the start.

    A wall clock that is set back while the daemon runs changes nothing; one that was set back between two daemons is
    held at `last_ns`, so that the ledger never counts negative time.
    """

    def __init__(
        self,
        last_ns: int,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._offset_ns = max(last_ns, wall_ns()) - monotonic_ns()

    def now_ns(self) -> int:
        return self._offset_ns + self._monotonic_ns()

    def at_monotonic_ns(self, monotonic_ns: int) -> int:
        """The time on this clock of a reading of this machine's monotonic clock."""
        return self._offset_ns + monotonic_ns
