"""One attempt's gang, as it really is. The daemon sees only what the observer makes of it.

A gang forms when every rank has joined and the attempt's store lives; it restores, trains, and finishes. One lost
member breaks it: a step is finished by all or dropped by all, and a rank may have completed the vote of a step that is
not applied. Trainers that speak the worker protocol then wait for the next attempt with their state, others end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from orchestrator.recovery.commands import JoinGang
from orchestrator.recovery.events import (
    CheckpointCommitted,
    CheckpointRejected,
    Event,
    FirstStep,
    GangFormed,
    GangRestored,
    RunFinished,
    StepRegained,
    StepsCounted,
    WorkerFault,
)
from orchestrator.simulator.timeline import MS, S
from orchestrator.simulator.trainer import Trainer

if TYPE_CHECKING:
    from orchestrator.simulator.truth import RunTruth

COLLECTIVE_TIMEOUT_NS = 60 * S  # of a program that does not speak the worker protocol


class Watcher(Protocol):
    """The daemon's observer: folds what trainers show into verdicts."""

    def progressed(self, gang: Gang) -> None: ...
    def stalled(self, gang: Gang, trainer: Trainer) -> None: ...


class Nobody:
    """Watches nothing."""

    def progressed(self, gang: Gang) -> None: ...
    def stalled(self, gang: Gang, trainer: Trainer) -> None: ...


class Gang:
    """`stage` is forming, restoring, training, stalled, finishing, finished or broken. `shown`: verdicts due so far."""

    def __init__(self, truth: RunTruth, command: JoinGang) -> None:
        self.truth = truth
        self.timeline = truth.timeline
        self.rng = truth.rng
        self.run = command.run
        self.attempt = command.attempt
        self.world_size = command.world_size
        self.shards = command.shards
        self.restore = command.restore
        self.members: dict[int, Trainer] = {}
        self.stage = "forming"
        self.turn = 0  # plans made in an earlier turn are void
        self.shown: list[Event] = []
        self.first = self.step0 = 0
        self.since_ns = 0
        self.regained = False
        self.counted_ns = 0
        self.byes = 0

    # --- forming and restoring

    def add(self, trainer: Trainer) -> None:
        if self.stage != "forming":
            self._later(50 * MS, self._peer_error, trainer)
            return
        self.members[trainer.rank] = trainer
        self.try_form()

    def try_form(self) -> None:
        if len(self.members) < self.world_size or self.stage != "forming" or self.attempt not in self.truth.stores:
            return
        if any(trainer.frozen for trainer in self.members.values()):
            return
        slow = self.truth.slow_forms > 0
        self.truth.slow_forms -= slow
        self._plan(600 * S if slow else self.rng.randrange(20 * MS, 800 * MS), self._formed)

    def _formed(self) -> None:
        self.stage = "restoring"
        self._show(GangFormed(run=self.run, attempt=self.attempt))
        step, source = self._source()
        slow = self.truth.slow_restores > 0
        self.truth.slow_restores -= slow
        if source != "peers":
            for trainer in self.members.values():
                trainer.shard = -1
        self._plan(600 * S if slow else self.rng.randrange(20 * MS, 1500 * MS), self._restored, step, source)

    def _source(self) -> tuple[int, str]:
        """Peers, when every shard has a holder at the newest step that any completed vote has settled."""
        if self.restore == "peers":
            holders = [trainer for trainer in self.members.values() if trainer.shard >= 0]
            step = max((trainer.voted for trainer in holders), default=0)
            covered = {trainer.shard for trainer in holders if trainer.voted == step or trainer.step == step - 1}
            if len(covered) == self.shards:
                return step, "peers"
        while self.truth.checkpoints and self.truth.checkpoints[-1] in self.truth.damaged:
            path = f"step-{self.truth.checkpoints.pop()}"
            if self.truth.job.plan.speaks_protocol:
                why = "digest of rank-0.safetensors"
                self.members[0].keeper.report(
                    CheckpointRejected(run=self.run, attempt=self.attempt, path=path, why=why)
                )
        return (self.truth.checkpoints[-1], "checkpoint") if self.truth.checkpoints else (0, "init")

    def _restored(self, step: int, source: str) -> None:
        for trainer in self.members.values():
            trainer.shard = trainer.rank % self.shards
            trainer.step = trainer.voted = step
        self._show(GangRestored(run=self.run, attempt=self.attempt, step=step, source=source))
        self.first = step + 1
        self._train(step)

    # --- training

    def _train(self, step: int) -> None:
        self.stage = "training"
        self.truth.note_overlap(self)
        self.step0, self.since_ns = step, self.timeline.now_ns
        self.counted_ns = self.counted_ns or self.timeline.now_ns
        for trainer in self.members.values():
            if trainer.keeper.lemon:
                self._plan(self.rng.randrange(S, 20 * S), self._kill, trainer)
        self._plan_step()

    def step_now(self) -> int:
        """The last step that all ranks have completed."""
        if self.stage != "training":
            return self.step0
        return min(self.truth.job.steps, self.step0 + (self.timeline.now_ns - self.since_ns) // self.truth.job.step_ns)

    def _plan_step(self) -> None:
        """Wake at the next step that matters; those between are arithmetic."""
        now = self.step_now()
        job = self.truth.job
        interval = job.interval
        stops = [job.steps, (now // interval + 1) * interval, now + max(1, 15 * S // job.step_ns)]
        if now < self.first:
            stops.append(self.first)
        if not self.regained:
            stops.append(max(self.first, self.truth.highest + 1))
        step = max(now, min(stops))
        due_ns = self.since_ns + (step - self.step0) * job.step_ns
        self._plan(max(0, due_ns - self.timeline.now_ns), self._reached, step)

    def _reached(self, step: int) -> None:
        job = self.truth.job
        if step == self.first:
            self._show(FirstStep(run=self.run, attempt=self.attempt, step=step))
        if not self.regained and step > self.truth.highest:
            self.regained = True
            self._show(StepRegained(run=self.run, attempt=self.attempt, step=step))
        if step % job.interval == 0 and step not in self.truth.checkpoints:
            self.truth.checkpoints.append(step)
            self._committed(step)
        if self.timeline.now_ns - self.counted_ns >= 10 * S:
            self._count(step)
        if step >= job.steps:
            self._finish()
        else:
            self._plan_step()

    def _committed(self, step: int) -> None:
        if self.truth.job.plan.speaks_protocol:
            digest = f"{step:064x}"
            self.members[0].keeper.report(
                CheckpointCommitted(run=self.run, attempt=self.attempt, step=step, path=f"step-{step}", digest=digest)
            )

    def _count(self, step: int) -> None:
        span_ns = self.timeline.now_ns - self.counted_ns
        self.counted_ns = self.timeline.now_ns
        stalls = {
            "checkpoint_stall_ns": self.rng.randrange(span_ns // 20),
            "data_stall_ns": self.rng.randrange(span_ns // 50),
        }
        self._show(StepsCounted(run=self.run, attempt=self.attempt, step=step, **stalls))

    def _finish(self) -> None:
        self._settle(self.truth.job.steps)
        self.stage = "finishing"
        self.truth.on_finish()
        for trainer in list(self.members.values()):
            self._plan(self.rng.randrange(MS, 400 * MS), self.bye, trainer)

    def bye(self, trainer: Trainer) -> None:
        """One rank is done. Its end needs no other rank, so the deaths of others don't stop it."""
        if trainer.phase == "in" and not trainer.frozen and trainer.attempt == self.attempt:
            trainer.keeper.ended(trainer, code=0, completed=self.truth.job.plan.speaks_protocol)
            self.byes += 1
            if self.byes == self.world_size:
                self.stage = "finished"
                self.truth.finished = True
                self._show(RunFinished(run=self.run, attempt=self.attempt, step=self.truth.job.steps))

    # --- disturbances

    def break_(self, by: Trainer) -> None:
        """A member is gone or leaves. Whoever waits for it in a collective finds out, or stays blocked until told."""
        if self.stage in ("broken", "finishing", "finished"):
            return
        if self.stage == "training":
            self._settle(self.step_now())
            if self.rng.random() < self.truth.vote_share:
                for trainer in self.members.values():
                    trainer.voted += self.rng.random() < 0.5 and trainer.step < self.truth.job.steps
        self.step0 = self.step_now()
        self.stage = "broken"
        self.turn += 1
        for trainer in self.members.values():
            if trainer is not by and self.rng.random() < 0.9:
                self._later(self.rng.randrange(2 * MS, 60 * MS), self._peer_error, trainer)

    def _settle(self, step: int) -> None:
        self.truth.highest = max(self.truth.highest, step)
        self.step0 = step
        for trainer in self.members.values():
            trainer.step = trainer.voted = step

    def _peer_error(self, trainer: Trainer) -> None:
        if trainer.phase != "in" or trainer.attempt != self.attempt or trainer.frozen:
            return
        if not self.truth.job.plan.speaks_protocol:
            trainer.keeper.ended(trainer, code=1)
            return
        fault = WorkerFault(
            run=self.run,
            attempt=self.attempt,
            rank=trainer.rank,
            node=trainer.keeper.name,
            fault="peer",
            detail="Connection closed by peer",
        )
        trainer.keeper.report(fault)
        trainer.phase = "waiting"
        trainer.left(self.attempt, "peer")

    def stall(self, trainer: Trainer) -> None:
        """A frozen member holds everybody; the steps stop."""
        if self.stage == "training":
            self._settle(self.step_now())
            self.stage = "stalled"
            self.turn += 1
            self.truth.watcher.stalled(self, trainer)
        elif self.stage == "finishing":
            self.truth.watcher.stalled(self, trainer)
        elif self.stage in ("forming", "restoring"):
            self.turn += 1
        if not self.truth.job.plan.speaks_protocol:
            self._later(COLLECTIVE_TIMEOUT_NS, self._give_up, trainer)

    def _give_up(self, frozen: Trainer) -> None:
        """Of a program that tells nothing no detector sees a hang; its other ranks end by their collective's timeout."""
        waiting = [
            t for t in self.members.values() if t is not frozen and t.phase == "in" and t.attempt == self.attempt
        ]
        if waiting and frozen.frozen and frozen.phase == "in" and self.stage != "finishing":
            waiting[0].keeper.ended(waiting[0], signal=6)

    def resume(self, trainer: Trainer) -> None:
        """The frozen member moves again: on with the steps, or it finds the gang broken, or itself done."""
        if any(t.frozen for t in self.members.values()):
            return
        match self.stage:
            case "stalled":
                self._train(self.step0)
            case "forming":
                self.try_form()
            case "restoring":
                self._plan(self.rng.randrange(20 * MS, 1500 * MS), self._restored, *self._source())
            case "finishing":
                self.bye(trainer)
            case "broken":
                self._peer_error(trainer)

    def _kill(self, trainer: Trainer) -> None:
        if trainer.phase == "in" and trainer.attempt == self.attempt:
            trainer.keeper.ended(trainer, signal=11)

    # --- plumbing

    def _show(self, event: Event) -> None:
        """Of a command that does not speak the worker protocol only its processes are seen."""
        if not self.truth.job.plan.speaks_protocol and not isinstance(event, GangFormed):
            return
        self.shown.append(event)
        self.truth.watcher.progressed(self)

    def _plan(self, delay_ns: int, call: Callable[..., None], *args: object) -> None:
        """Call later, unless the gang was disturbed meanwhile."""
        turn = self.turn
        self.timeline.after(delay_ns, lambda: call(*args) if self.turn == turn else None)

    def _later(self, delay_ns: int, call: Callable[..., None], *args: object) -> None:
        self.timeline.after(delay_ns, call, *args)
