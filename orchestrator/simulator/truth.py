"""A run over all its attempts, as it really is: its gangs, stores and checkpoints. The daemon sees none of this."""

from __future__ import annotations

import random
from collections.abc import Callable

from orchestrator.recovery.commands import JoinGang
from orchestrator.simulator.gang import Gang, Nobody, Watcher
from orchestrator.simulator.shape import Job
from orchestrator.simulator.timeline import Timeline


class RunTruth:
    """`highest` is the last step that all ranks of some attempt completed."""

    def __init__(self, job: Job, timeline: Timeline, rng: random.Random, vote_share: float) -> None:
        self.job = job
        self.timeline = timeline
        self.rng = rng
        self.vote_share = vote_share
        self.highest = 0
        self.checkpoints: list[int] = []
        self.damaged: set[int] = set()
        self.gangs: dict[int, Gang] = {}
        self.stores: dict[int, str] = {}  # attempt -> node, of those alive
        self.slow_forms = 0  # this many attempts form, or restore, slower than any deadline
        self.slow_restores = 0
        self.finished = False
        self.overlaps: list[str] = []  # two attempts that trained at the same time: must stay empty
        self.watcher: Watcher = Nobody()
        self.on_finish: Callable[[], None] = lambda: None

    def gang(self, command: JoinGang) -> Gang:
        if command.attempt not in self.gangs:
            self.gangs[command.attempt] = Gang(self, command)
        return self.gangs[command.attempt]

    def training(self) -> list[Gang]:
        return [gang for gang in self.gangs.values() if gang.stage == "training"]

    def note_overlap(self, starting: Gang) -> None:
        for gang in self.training():
            if gang is not starting:
                self.overlaps.append(
                    f"{starting.run}: attempt {starting.attempt} trains while {gang.attempt} still does"
                )
