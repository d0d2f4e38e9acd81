"""Takes the supervisor's orders in the client's thread and hands them to the thread that trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from trainer.parallel.gang import Gang
from trainer.parallel.layout import Layout
from trainer.protocol.client import Message


@dataclass(frozen=True)
class Join:
    """An order to take part in an attempt. `restore` is "checkpoint" or "peers"; an empty log_path leaves the log."""

    attempt: int
    layout: Layout
    store_host: str
    store_port: int
    restore: str
    log_path: str = ""

    @classmethod
    def from_message(cls, message: Message) -> Join:
        """Raises KeyError, TypeError or ValueError for a message that isn't a sound join."""
        store = message["store"]
        layout = Layout(int(message["rank"]), int(message["replicas"]), int(message["shards"]))
        if layout.world != message["world_size"]:
            raise ValueError(f"{layout.replicas} x {layout.shards} isn't a world of {message['world_size']}")
        if message["restore"] not in ("checkpoint", "peers"):
            raise ValueError(f"unknown restore {message['restore']!r}")
        return cls(
            attempt=int(message["attempt"]),
            layout=layout,
            store_host=str(store["host"]),
            store_port=int(store["port"]),
            restore=str(message["restore"]),
            log_path=str(message.get("log_path") or ""),
        )


class Desk:
    """`say_left(attempt, why)` repeats that this trainer is out; `stop()` ends the process. Both are called in the
    client's thread, `say_left` only while the training thread waits in `next_join`."""

    def __init__(self, say_left: Callable[[int, str], None], stop: Callable[[], None]) -> None:
        self._say_left = say_left
        self._stop = stop
        self._changed = threading.Condition()
        self._fence = 0  # no attempt up to this one may be joined any more
        self._left = 0  # no attempt up to this one may go on
        self._pending: Join | None = None
        self._attempt = 0
        self._gang: Gang | None = None
        self._save = False

    @property
    def attempt(self) -> int:
        """The attempt being taken part in; 0 for none."""
        return self._attempt

    def handle(self, message: Message) -> None:
        """An order of the supervisor. Unknown types are ignored, unsound messages raise."""
        match message.get("type"):
            case "join":
                self._on_join(Join.from_message(message))
            case "leave":
                self._on_leave(int(message["attempt"]), str(message.get("why", "")))
            case "checkpoint":
                with self._changed:
                    self._save = self._save or message.get("attempt") == self._attempt
            case "stop":
                self._stop()

    def next_join(self) -> Join:
        """Wait for the next order to join, and count as part of that attempt from then on."""
        with self._changed:
            while self._pending is None:
                self._changed.wait()
            join, self._pending = self._pending, None
            self._attempt = join.attempt
            self._save = False
            return join

    def enter(self, gang: Gang) -> None:
        """From now on an order to leave aborts this gang; at once, when it has come already."""
        with self._changed:
            self._gang = gang
            overtaken = self._fence > gang.attempt or self._left >= gang.attempt
        if overtaken:
            gang.abort("told to leave")

    def exit(self) -> None:
        """The training thread is out of its attempt."""
        with self._changed:
            self._attempt = 0
            self._gang = None

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        with self._changed:
            asked, self._save = self._save, False
            return asked

    def _on_join(self, join: Join) -> None:
        with self._changed:
            if join.attempt <= self._fence:
                return
            self._fence = join.attempt
            self._pending = join
            gang = self._gang
            self._changed.notify_all()
        if gang is not None:
            gang.abort(f"attempt {join.attempt} begins")

    def _on_leave(self, attempt: int, why: str) -> None:
        with self._changed:
            if attempt < self._attempt:
                return
            self._fence = max(self._fence, attempt)
            self._left = max(self._left, attempt)
            if self._pending is not None and self._pending.attempt <= attempt:
                self._pending = None
            gang, idle = self._gang, self._attempt == 0
        if gang is not None:
            gang.abort(why)
        elif idle:
            self._say_left(attempt, why)
