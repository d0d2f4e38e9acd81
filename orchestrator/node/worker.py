"""What the supervisor knows of one trainer, and what follows from what the trainer says. No I/O but its own line."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

from orchestrator.link.messages import WorkerStatus
from orchestrator.node import protocol
from orchestrator.node.lines import Line
from orchestrator.node.processes import Process


class Worker:
    """One trainer process, or the wish for one.

    `attempt` is what its leaving and its end are reported with: the newest that it was told to join, leave or end.
    `joined` is the attempt that it is in, or shall be once it has read its last join.
    """

    def __init__(self, run: str, rank: int, attempt: int, *, speaks: bool, log_path: Path | None) -> None:
        self.run = run
        self.rank = rank
        self.attempt = attempt
        self.joined = attempt
        self.speaks = speaks  # the worker protocol
        self.log_path = log_path
        self.process: Process | None = None
        self.launch: asyncio.Task[None] | None = None  # while it is being started
        self.line: Line | None = None
        self.line_closed = asyncio.Event()
        self.greeted = False
        self.ended = asyncio.Event()
        self.stopping = False
        self.stop_grace_s = 0.0
        self.join: dict[str, object] | None = None  # the last it was told
        self.leaving = False
        self.left: protocol.Left | None = None
        self.bye: protocol.Bye | None = None
        self.view = _View()

    @property
    def key(self) -> tuple[str, int]:
        return self.run, self.rank

    @property
    def completed(self) -> bool:
        return self.bye is not None and self.bye.reason == "completed"

    def ask_join(self, message: dict[str, object], attempt: int) -> None:
        """Into a newer attempt; said now or at its next hello."""
        self.join, self.attempt, self.joined = message, attempt, attempt
        self.left, self.bye, self.leaving = None, None, False
        self.view = _View()
        self.send(message)

    def ask_leave(self, attempt: int, why: str) -> None:
        self.leaving = True
        self.attempt = max(self.attempt, attempt)
        self.send({"type": "leave", "attempt": self.joined, "why": why})

    def ask_stop(self, grace_s: float) -> None:
        self.stopping, self.stop_grace_s = True, grace_s
        self.send({"type": "stop", "grace_s": grace_s})

    def send(self, message: dict[str, object]) -> None:
        if self.line:
            self.line.send(message)

    def greet(self, line: Line, attempt: int) -> None:
        """Its (new) connection: say again what the old one may have lost."""
        self.line, self.line_closed, self.greeted = line, asyncio.Event(), True
        if self.stopping:
            self.ask_stop(self.stop_grace_s)
        elif self.leaving and not self.left:
            self.send({"type": "leave", "attempt": self.joined, "why": "asked before"})
        elif self.join and attempt < self.joined and not self.left:
            self.send(self.join)

    def catch_up(self, attempt: int) -> None:
        """It is in a newer attempt than we knew: it joined under the supervisor before this one."""
        self.joined = max(self.joined, attempt)
        self.attempt = max(self.attempt, attempt)

    def take_phase(self, said: protocol.Phase, now_ns: int) -> None:
        view = self.view
        view.phase, view.said_ns = said.phase, now_ns
        if said.phase == "train" and said.source:
            view.source, view.restored_step, view.detail = said.source, said.step, said.detail

    def take_progress(self, said: protocol.Progress, now_ns: int) -> bool:
        """True for the first step of the attempt. A step that was said before, over a line that broke, counts once."""
        view = self.view
        if view.first_step and said.step <= view.step:
            return False
        first = view.first_step == 0
        if first:
            view.first_step, view.first_step_ns = said.step, now_ns
        if view.phase == "starting":
            view.phase = "train"
        view.step, view.tokens, view.step_ms, view.said_ns = said.step, said.tokens, said.step_ms, now_ns
        view.loss, view.grad_norm, view.skipped = _finite(said.loss), _finite(said.grad_norm), said.skipped
        view.data_ms_total += said.data_ms
        view.checkpoint_ms_total += said.checkpoint_ms
        return first

    def status(self, now_ns: int) -> WorkerStatus:
        view = self.view
        return WorkerStatus(
            run=self.run,
            attempt=self.joined,
            rank=self.rank,
            pid=self.process.pid if self.process else 0,
            phase=view.phase,
            step=view.step,
            first_step=view.first_step,
            first_step_age_ns=now_ns - view.first_step_ns if view.first_step else 0,
            source=view.source,
            restored_step=view.restored_step,
            detail=view.detail,
            loss=view.loss,
            grad_norm=view.grad_norm,
            tokens=view.tokens,
            skipped=view.skipped,
            step_ms=view.step_ms,
            data_ms_total=view.data_ms_total,
            checkpoint_ms_total=view.checkpoint_ms_total,
            age_ns=now_ns - view.said_ns if view.said_ns else 0,
        )


class _View:
    """What it said of itself in this attempt."""

    def __init__(self) -> None:
        self.phase = "starting"
        self.step = 0
        self.first_step = 0
        self.first_step_ns = 0
        self.source = ""
        self.restored_step = -1
        self.detail = ""
        self.loss = 0.0
        self.grad_norm = 0.0
        self.tokens = 0
        self.skipped = 0
        self.step_ms = 0.0
        self.data_ms_total = 0.0
        self.checkpoint_ms_total = 0.0
        self.said_ns = 0


def _finite(value: float | None) -> float:
    # JSON has no infinities; a number that is not finite is reported as a fault, not as progress.
    return value if value is not None and math.isfinite(value) else 0.0
