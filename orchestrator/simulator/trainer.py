"""A fake trainer: what it holds, and what it says when it leaves. Its gang and its supervisor move it."""

from __future__ import annotations

from typing import Protocol

from orchestrator.recovery.commands import JoinGang, LeaveGang
from orchestrator.recovery.events import Event, WorkerLeft


class Keeper(Protocol):
    """The supervisor of a trainer, as far as its gang needs it."""

    name: str
    lemon: bool

    def report(self, event: Event) -> None: ...
    def ended(
        self, trainer: Trainer, *, code: int | None = None, signal: int | None = None, completed: bool = False
    ) -> None: ...


class Trainer:
    """`phase` is starting, in (a gang), waiting, or gone. A frozen one does nothing until it is thawed or killed."""

    def __init__(self, run: str, rank: int, keeper: Keeper, attempt: int) -> None:
        self.run = run
        self.rank = rank
        self.keeper = keeper
        self.attempt = attempt
        self.phase = "starting"
        self.frozen = False
        self.ending = False  # told to stop; its process lasts a little longer
        self.untold: JoinGang | LeaveGang | None = None  # said to it while it was frozen
        self.shard = -1  # whose state it holds; -1: none
        self.step = 0
        self.voted = 0

    def left(self, attempt: int, why: str) -> None:
        event = WorkerLeft(
            run=self.run, attempt=attempt, rank=self.rank, node=self.keeper.name, step=self.step, voted_step=self.voted,
            holds_state=self.shard >= 0, why=why,
        )  # fmt: skip
        self.keeper.report(event)
