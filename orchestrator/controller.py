"""The one loop: take an event, decide, write it down, act. The same code in production and in simulation.

Rules of the file:
- Write, then act: a command is executed only after the decision that holds it is durable in the journal.
- Time never goes back: an event is stamped with max(time of the last event, the cluster's clock).
- One bad event does not stop the house: when `decide` raises, the event is journaled as poison together with the
  error, the state is kept, and the loop goes on. In simulation (`strict`) it raises.
- A journal that can't be written stops the loop: nothing may be done that would be forgotten. Trainers run on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
import structlog

from orchestrator.recovery.commands import Command
from orchestrator.recovery.decide import decide as core_decide
from orchestrator.recovery.decide import next_deadline
from orchestrator.recovery.events import DaemonStarted, DeadlinePassed, Event
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, State

log = structlog.get_logger("controller")

POISON_PAUSE_NS = 1_000_000_000  # a deadline that can't be decided on is tried again this much later, doubling
POISON_PAUSE_MAX_NS = 60_000_000_000

Decide = Callable[[State, Event, Policy], Decision]
Listener = Callable[[Event, Decision], None]


class Cluster(Protocol):
    """The world as the controller meets it. Used by one thread, the controller's."""

    def now_ns(self) -> int:
        """Nanoseconds of a clock that never goes back, not even over a restart of the daemon (see JournalClock)."""

    def next_event(self, until_ns: int | None) -> Event | None:
        """The next event; None when `until_ns` is reached (None: never) or when somebody wakes the cluster.

        Events in hand go before a deadline that has passed: they may be the answers it waits for. Being called says
        that the event returned before is durable: its sender may be told to forget it.
        """

    def execute(self, commands: tuple[Command, ...]) -> None:
        """Send the commands. Outcomes come back as events; a node that can't be reached is no error here."""


class EventLog(Protocol):
    """What the loop needs of a journal: both calls return only when the entry is durable."""

    def append(self, event: Event, decision: Decision) -> int: ...

    def append_poison(self, event: Event, error: str, epoch: int) -> int: ...


class Controller:
    """Runs `decide` over a cluster's events. `state` may be read from any thread: it is immutable and replaced whole.

    `listeners` are called with (event, decision) after the commands were sent: status, metrics, answers to operators.
    `events`, `poisoned` and `failures` count events decided on, events that `decide` could not take, and errors of
    `execute` or a listener.
    """

    def __init__(
        self,
        cluster: Cluster,
        journal: EventLog,
        state: State,
        policy: Policy,
        *,
        decide: Decide = core_decide,
        listeners: Iterable[Listener] = (),
        strict: bool = False,
    ) -> None:
        self._cluster = cluster
        self._journal = journal
        self._policy = policy
        self._decide = decide
        self._listeners = tuple(listeners)
        self._strict = strict
        self._stopped = threading.Event()
        self._pause_ns = POISON_PAUSE_NS
        self._no_deadline_before_ns = 0
        self.state = state
        self.events = 0
        self.poisoned = 0
        self.failures = 0

    def start(self, epoch: int) -> None:
        """Take over: everything after this is decided and sent under `epoch`, which must be a new highest one."""
        if epoch <= self.state.epoch:
            raise ValueError(
                f"epoch {epoch} is not newer than the journal's {self.state.epoch}: another daemon took over"
            )
        self.handle(DaemonStarted(epoch=epoch, policy=self._policy))

    def run(self) -> None:
        """Loop until `stop`. Raises what the journal raises."""
        while not self._stopped.is_set():
            self.step()

    def stop(self) -> None:
        """End the loop at the next return of `Cluster.next_event`; whoever stops also wakes the cluster. Any thread."""
        self._stopped.set()

    def step(self) -> None:
        """One turn of the loop: at most one event."""
        until_ns = self._until_ns()
        event = self._cluster.next_event(until_ns)
        if event is None:
            if until_ns is None or self._cluster.now_ns() < until_ns or self._stopped.is_set():
                return
            event = DeadlinePassed()
        self.handle(event)

    def handle(self, event: Event) -> None:
        """Stamp one event, decide on it, journal it, act on it, tell the listeners."""
        event = msgspec.structs.replace(event, at_ns=max(self.state.at_ns, self._cluster.now_ns()))
        try:
            decision = self._decide(self.state, event, self._policy)
        except Exception as error:
            if self._strict:
                raise
            self._refuse(event, error)
            return
        self._journal.append(event, decision)
        self.state = decision.state
        self.events += 1
        self._pause_ns = POISON_PAUSE_NS
        if decision.commands:
            self._attempt("execute", self._cluster.execute, decision.commands)
        for listener in self._listeners:
            self._attempt("listener", listener, event, decision)

    def _until_ns(self) -> int | None:
        deadline_ns = next_deadline(self.state)
        return None if deadline_ns is None else max(deadline_ns, self._no_deadline_before_ns)

    def _refuse(self, event: Event, error: Exception) -> None:
        """Keep the state. A deadline stays due, so it must wait, or the loop would spin and fill the disk."""
        self._journal.append_poison(event, f"{type(error).__name__}: {error}", self.state.epoch)
        self.poisoned += 1
        if isinstance(event, DeadlinePassed):
            self._no_deadline_before_ns = event.at_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, POISON_PAUSE_MAX_NS)
        log.error(
            "event_not_decided", event_kind=type(event).__name__, at_ns=event.at_ns, error=str(error), exc_info=error
        )

    def _attempt(self, what: str, call: Callable[..., None], *args: object) -> None:
        """A command that was not sent is like one that was lost: a deadline or the next start sends it again."""
        try:
            call(*args)
        except Exception as error:
            if self._strict:
                raise
            self.failures += 1
            log.error("controller_call_failed", what=what, error=str(error), exc_info=error)
