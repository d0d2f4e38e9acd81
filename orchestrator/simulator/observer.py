"""The daemon's detectors, modelled as delays: what they would have folded out of beats and progress, as verdicts.

They see only while the daemon lives and holds a connection to every node concerned. After a restart they say again what
the trainers' latest statuses still show, and nothing about trainers that are gone: level, not edge.
"""

from __future__ import annotations

import random

from orchestrator.recovery.events import RunFinished, StepsCounted, WorkerHung
from orchestrator.simulator.gang import Gang
from orchestrator.simulator.link import Link
from orchestrator.simulator.timeline import MS, Timeline
from orchestrator.simulator.trainer import Trainer
from orchestrator.simulator.truth import RunTruth

HANGING = ("stalled", "finishing")  # stages in which a frozen trainer is noticed; deadlines watch the others


class Observer:
    def __init__(self, timeline: Timeline, rng: random.Random, link: Link, runs: dict[str, RunTruth]) -> None:
        self.timeline = timeline
        self.rng = rng
        self.link = link
        self.runs = runs
        self._said: dict[tuple[str, int], int] = {}  # gang -> how much of what it has shown was said

    def progressed(self, gang: Gang) -> None:
        self.timeline.after(self.rng.randrange(5 * MS, 250 * MS), self._look, gang, self.link.life)

    def stalled(self, gang: Gang, trainer: Trainer) -> None:
        self.timeline.after(self.link.shape.hang_ns, self._hung, gang, trainer, self.link.life)

    def look_again(self, node: str) -> None:
        """A node has connected: look at every gang that it is part of."""
        for gang in self._gangs():
            if any(trainer.keeper.name == node for trainer in gang.members.values()):
                self.progressed(gang)

    def forget(self) -> None:
        """The daemon died, and with it what its detectors knew."""
        self._said.clear()
        for truth in self.runs.values():
            for gang in truth.gangs.values():
                gang.shown = [event for event in gang.shown if not isinstance(event, StepsCounted | RunFinished)]

    def daemon_started(self) -> None:
        for gang in self._gangs():
            for trainer in gang.members.values():
                if gang.stage in HANGING and trainer.frozen:
                    self.stalled(gang, trainer)

    def _gangs(self) -> list[Gang]:
        return [gang for truth in self.runs.values() for gang in truth.gangs.values()]

    def _look(self, gang: Gang, life: int) -> None:
        if life != self.link.life or gang.stage == "broken":
            return
        if not all(self.link.lines[t.keeper.name].up for t in gang.members.values()):
            return
        key = (gang.run, gang.attempt)
        for event in gang.shown[self._said.get(key, 0) :]:
            self.link.say(event)
        self._said[key] = len(gang.shown)

    def _hung(self, gang: Gang, trainer: Trainer, life: int) -> None:
        if life != self.link.life or gang.stage not in HANGING or not trainer.frozen or trainer.phase != "in":
            return
        gang_wide = self.rng.random() < 0.2
        hung = WorkerHung(
            run=gang.run, attempt=gang.attempt, rank=-1 if gang_wide else trainer.rank,
            node="" if gang_wide else trainer.keeper.name, evidence="no progress, process stopped",
        )  # fmt: skip
        self.link.say(hung)
