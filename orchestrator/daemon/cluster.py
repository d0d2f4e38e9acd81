"""The world as the controller meets it in production: a queue of events in, orders to supervisors out."""

from __future__ import annotations

import queue
from collections.abc import Callable

from orchestrator.journal.clock import JournalClock
from orchestrator.recovery.commands import Command
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Decision

# Called in the controller's thread once the event is durable; with None when `decide` could not take it.
Settled = Callable[[Decision | None], None]


class LiveCluster:
    """Used by the controller's thread; `put` and `wake` by any. `dispatch` must be quick and safe to call from there."""

    def __init__(self, clock: JournalClock, dispatch: Callable[[tuple[Command, ...]], None]) -> None:
        self._clock = clock
        self._dispatch = dispatch
        self._events: queue.SimpleQueue[tuple[Event, Settled | None] | None] = queue.SimpleQueue()
        self._settled: Settled | None = None
        self._decision: Decision | None = None

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def put(self, event: Event, settled: Settled | None = None) -> None:
        self._events.put((event, settled))

    def wake(self) -> None:
        self._events.put(None)

    def next_event(self, until_ns: int | None) -> Event | None:
        self._settle()
        timeout_s = None if until_ns is None else max(0.0, (until_ns - self.now_ns()) / 1e9)
        try:
            item = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is None:
            return None
        event, self._settled = item
        return event

    def execute(self, commands: tuple[Command, ...]) -> None:
        self._dispatch(commands)

    def decided(self, _: Event, decision: Decision) -> None:
        """A listener of the controller's: what became of the event in hand."""
        self._decision = decision

    def _settle(self) -> None:
        settled, decision = self._settled, self._decision
        self._settled = self._decision = None
        if settled is not None:
            settled(decision)
