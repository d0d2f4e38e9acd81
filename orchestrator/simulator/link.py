"""The lines between the daemon and its supervisors, with what real ones do: break, delay, send again, overtake.

A supervisor keeps each event until it is acknowledged, and sends all it still has at each new connection, after
NodeReady. Orders to a node without connection are lost; orders of one connection keep their order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from orchestrator.recovery.commands import Command
from orchestrator.recovery.events import CommandFailed, Event, NodeLost, NodeReady
from orchestrator.simulator.shape import Shape
from orchestrator.simulator.timeline import MS, S, Timeline

OPERATOR = "operator"  # a line like the others: an operator whose request was not answered asks again


class Peer(Protocol):
    """The far end of a line."""

    name: str

    def reachable(self) -> bool: ...
    def ready(self) -> NodeReady | None: ...
    def obey(self, epoch: int, command: Command) -> None: ...


class Line:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.up = False
        self.generation = 0  # of the connection: what was in flight on an older one is lost
        self.cursor = 0
        self.outbox: dict[int, Event] = {}
        self.last_up_ns = 0
        self.last_down_ns = 0


class Link:
    """`inbox` holds (event, line or None, cursor) in the order in which the daemon will take them."""

    def __init__(self, timeline: Timeline, rng: random.Random, shape: Shape) -> None:
        self.timeline = timeline
        self.rng = rng
        self.shape = shape
        self.inbox: deque[tuple[Event, Line | None, int]] = deque()
        self.lines: dict[str, Line] = {}
        self.daemon_up = False
        self.life = 0  # of the daemon: verdicts of an earlier one are void
        self.duplicates = 0
        self.resent = 0
        self.undelivered = 0
        self.on_connect: Callable[[str], None] = lambda name: None

    def add(self, peer: Peer) -> None:
        self.lines[peer.name] = Line(peer)

    # --- up

    def report(self, name: str, event: Event) -> None:
        """A supervisor (or the operator) keeps an event and sends it."""
        line = self.lines[name]
        line.cursor += 1
        line.outbox[line.cursor] = msgspec.structs.replace(event, observed_at_ns=self.timeline.now_ns)
        if line.up:
            self._send(line, line.cursor)

    def say(self, event: Event) -> None:
        """The daemon's own verdict; lost when there is no daemon."""
        if self.daemon_up:
            self.inbox.append((msgspec.structs.replace(event, observed_at_ns=self.timeline.now_ns), None, 0))

    def acknowledge(self, line: Line, cursor: int) -> None:
        line.outbox.pop(cursor, None)

    def _send(self, line: Line, cursor: int) -> None:
        arrival_ns = max(line.last_up_ns, self.timeline.now_ns + self.rng.randrange(MS // 5, 20 * MS))
        if self.rng.random() < self.shape.late_share:
            arrival_ns += self.rng.randrange(2 * S)
        else:
            line.last_up_ns = arrival_ns
        self.timeline.after(arrival_ns - self.timeline.now_ns, self._arrive, line, line.generation, cursor)
        if self.rng.random() < self.shape.duplicate_share:
            self.duplicates += 1
            again_ns = arrival_ns - self.timeline.now_ns + self.rng.randrange(3 * S)
            self.timeline.after(again_ns, self._arrive_again, line, line.generation, line.outbox[cursor])

    def _arrive(self, line: Line, generation: int, cursor: int) -> None:
        if line.up and line.generation == generation and cursor in line.outbox:
            self.inbox.append((line.outbox[cursor], line, cursor))

    def _arrive_again(self, line: Line, generation: int, event: Event) -> None:
        if line.up and line.generation == generation:
            self.inbox.append((event, None, 0))

    # --- down

    def order(self, epoch: int, command: Command) -> None:
        line = self.lines.get(command.node)
        if line is None or not line.up:
            self.undelivered += 1
            if self.shape.says_unreachable:
                self.timeline.after(MS, self.say, _unreachable(command))
            return
        arrival_ns = max(line.last_down_ns, self.timeline.now_ns + self.rng.randrange(MS // 5, 5 * MS))
        line.last_down_ns = arrival_ns
        self.timeline.after(arrival_ns - self.timeline.now_ns, self._obey, line, line.generation, epoch, command)

    def _obey(self, line: Line, generation: int, epoch: int, command: Command) -> None:
        if line.up and line.generation == generation and line.peer.reachable():
            line.peer.obey(epoch, command)
        else:
            self.undelivered += 1

    # --- connections

    def connect(self, name: str) -> None:
        line = self.lines[name]
        if line.up or not self.daemon_up or not line.peer.reachable():
            return
        line.up = True
        line.generation += 1
        ready = line.peer.ready()
        if ready is not None:
            self.say(ready)
            self.on_connect(name)
        self.resent += len(line.outbox)
        for cursor in line.outbox:
            self._send(line, cursor)

    def connect_soon(self, name: str, within_ns: int = 600 * MS) -> None:
        self.timeline.after(self.rng.randrange(within_ns), self.connect, name)

    def cut(self, name: str) -> None:
        """The connection breaks; if it does not come back in time, the node is lost."""
        line = self.lines[name]
        line.up = False
        line.generation += 1
        if self.daemon_up:
            self._expect(line)

    def _expect(self, line: Line) -> None:
        self.timeline.after(self.shape.node_loss_ns, self._lost, line, line.generation, self.life)

    def _lost(self, line: Line, generation: int, life: int) -> None:
        if not line.up and line.generation == generation and life == self.life:
            waited_s = self.shape.node_loss_ns / S
            self.say(NodeLost(node=line.peer.name, evidence=f"no connection for {waited_s:.1f} s"))

    def daemon_died(self) -> None:
        self.daemon_up = False
        self.life += 1
        self.inbox.clear()
        for line in self.lines.values():
            if line.up:
                line.up = False
                line.generation += 1

    def daemon_started(self) -> None:
        self.daemon_up = True
        self.life += 1
        for name, line in self.lines.items():
            if line.peer.reachable():
                self.connect_soon(name)
            else:
                self._expect(line)


def _unreachable(command: Command) -> CommandFailed:
    config = command.__struct_config__
    return CommandFailed(
        command=str(config.tag), node=command.node, run=getattr(command, "run", ""),
        attempt=getattr(command, "attempt", 0), error="not connected",
    )  # fmt: skip
