"""Statuses on their way to the daemon: the latest of each trainer, at once when it matters, else 20 times a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.link.messages import WorkerStatus

INTERVAL_S = 0.05

Key = tuple[str, int]


class StatusBoard:
    """`show` gives a trainer's status as of now, None when it is gone; `send` sends some to the daemon."""

    def __init__(
        self, show: Callable[[Key], WorkerStatus | None], send: Callable[[tuple[WorkerStatus, ...]], object]
    ) -> None:
        self._show = show
        self._send = send
        self._changed: dict[Key, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, key: Key, *, urgent: bool) -> None:
        self._changed[key] = None
        if urgent:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Sends what has changed, now."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        statuses = tuple(status for key in self._changed if (status := self._show(key)))
        self._changed.clear()
        if statuses:
            self._send(statuses)
