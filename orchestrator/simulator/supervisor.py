"""A fake node supervisor that keeps a real one's promises: epochs, attempts, idempotency, answers to every command.

- It obeys the highest epoch it has seen and, for each run, no attempt older than the last; it counts what it drops.
- A command that it has carried out already changes nothing; StartStore and LeaveGang are answered again.
- It outlives the daemon: trainers go on, events wait in its outbox (see link).
"""

from __future__ import annotations

import random

from orchestrator.recovery.commands import Command, JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.events import (
    CommandFailed,
    Event,
    Finding,
    NodeFindings,
    NodeProbed,
    NodeReady,
    StoreLost,
    StoreReady,
    WorkerExited,
)  # fmt: skip
from orchestrator.simulator.gang import Gang
from orchestrator.simulator.link import Link
from orchestrator.simulator.timeline import MS, S, Timeline
from orchestrator.simulator.trainer import Trainer
from orchestrator.simulator.truth import RunTruth


class Supervisor:
    def __init__(
        self, name: str, timeline: Timeline, rng: random.Random, link: Link, runs: dict[str, RunTruth]
    ) -> None:
        self.name = name
        self.timeline = timeline
        self.rng = rng
        self.link = link
        self.runs = runs
        self.powered = True
        self.partitioned = False
        self.sick = ""  # what a probe finds; empty: nothing
        self.lemon = False  # probes find nothing, trainers die
        self.forks_fail = 0
        self.boots = 1
        self.epoch = 0
        self.attempts: dict[str, int] = {}
        self.trainers: dict[tuple[str, int], Trainer] = {}
        self.stores: dict[str, int] = {}  # run -> attempt
        self.probing: set[ProbeNode] = set()
        self.stale_epochs = 0
        self.stale_attempts = 0

    # --- the link

    def reachable(self) -> bool:
        return self.powered and not self.partitioned

    def ready(self) -> NodeReady:
        workers = tuple((t.run, t.attempt, t.rank) for t in self.trainers.values())
        boot_id = f"{self.name}-boot-{self.boots}"
        return NodeReady(node=self.name, gpus=8, boot_id=boot_id, workers=workers, stores=tuple(self.stores.items()))

    def report(self, event: Event) -> None:
        if self.powered:
            self.link.report(self.name, event)

    def obey(self, epoch: int, command: Command) -> None:
        if epoch < self.epoch:
            self.stale_epochs += 1
            return
        self.epoch = epoch
        match command:
            case ProbeNode():
                self._probe(command)
            case StartStore() | JoinGang() | LeaveGang() | StopWorkers() if command.attempt < self.attempts.get(
                command.run, 0
            ):
                self.stale_attempts += 1
            case StartStore():
                self.attempts[command.run] = command.attempt
                self._start_store(command)
            case JoinGang():
                self.attempts[command.run] = command.attempt
                self._join(command)
            case LeaveGang():
                self.attempts[command.run] = command.attempt
                for trainer in self._of(command.run):
                    self.timeline.after(self.rng.randrange(MS, 30 * MS), self._tell, trainer, command)
            case StopWorkers():
                self.attempts[command.run] = command.attempt
                self._stop(command)

    # --- probes and stores

    def _probe(self, command: ProbeNode) -> None:
        if command not in self.probing:
            self.probing.add(command)
            self.timeline.after(self.rng.randrange(50 * MS, 3 * S), self._probed, command, self.boots)

    def _probed(self, command: ProbeNode, boots: int) -> None:
        if boots != self.boots or not self.powered:
            return
        self.probing.discard(command)
        self.report(
            NodeProbed(
                node=self.name, purpose=command.purpose, ok=not self.sick, run=command.run, attempt=command.attempt,
                findings=(self.finding(),) if self.sick else (),
            )
        )  # fmt: skip

    def finding(self) -> Finding:
        return Finding(
            check="xid",
            cause=self.sick,
            severity="fatal",
            action="drain_and_reset",
            sentence=f"GPU 3 reports {self.sick}",
            gpu=3,
        )

    def find(self, finding: Finding) -> None:
        self.report(NodeFindings(node=self.name, findings=(finding,)))

    def _start_store(self, command: StartStore) -> None:
        if self.stores.get(command.run) == command.attempt:
            self._store_ready(command)
            return
        self._end_store(command.run)
        self.stores[command.run] = command.attempt
        self.timeline.after(self.rng.randrange(10 * MS, 200 * MS), self._store_ready, command)

    def _store_ready(self, command: StartStore) -> None:
        if self.stores.get(command.run) == command.attempt:
            self.runs[command.run].stores[command.attempt] = self.name
            port = 20_000 + command.attempt
            self.report(StoreReady(run=command.run, attempt=command.attempt, node=self.name, host=self.name, port=port))

    def _end_store(self, run: str) -> int:
        attempt = self.stores.pop(run, 0)
        self.runs[run].stores.pop(attempt, None)
        return attempt

    def lose_store(self, run: str) -> None:
        attempt = self._end_store(run)
        if attempt:
            self.report(StoreLost(run=run, attempt=attempt, node=self.name, detail="killed by signal 9"))

    # --- trainers

    def _of(self, run: str) -> list[Trainer]:
        return [trainer for trainer in self.trainers.values() if trainer.run == run]

    def _join(self, command: JoinGang) -> None:
        """Live trainers keep their ranks where they can; others take the ranks that are left. Ending ones end first."""
        if self.attempts[command.run] != command.attempt:
            return
        if any(trainer.ending for trainer in self._of(command.run)):
            self.timeline.after(20 * MS, self._join, command)
            return
        if self.stores.get(command.run, command.attempt) < command.attempt:
            self._end_store(command.run)
        if self.forks_fail and any((command.run, rank) not in self.trainers for rank in command.ranks):
            self.forks_fail -= 1
            failed = CommandFailed(
                command="join_gang",
                node=self.name,
                run=command.run,
                attempt=command.attempt,
                error="fork: out of memory",
            )
            self.report(failed)
            return
        if not self.runs[command.run].job.plan.speaks_protocol:
            for old in [trainer for trainer in self._of(command.run) if trainer.attempt < command.attempt]:
                self.ended(old, signal=15)
        spare = [trainer for trainer in self._of(command.run) if trainer.rank not in command.ranks]
        for rank in command.ranks:
            trainer = self.trainers.get((command.run, rank))
            if trainer is None and spare:
                trainer = spare.pop(0)
                del self.trainers[(trainer.run, trainer.rank)]
                trainer.rank = rank
                self.trainers[(trainer.run, rank)] = trainer
            if trainer is None:
                self._fork(rank, command)
            elif trainer.attempt < command.attempt:
                self.timeline.after(self.rng.randrange(MS, 30 * MS), self._tell, trainer, command)

    def _fork(self, rank: int, command: JoinGang) -> None:
        trainer = Trainer(command.run, rank, self, command.attempt)
        self.trainers[(command.run, rank)] = trainer
        self.timeline.after(self.rng.randrange(30 * MS, 400 * MS), self._started, trainer, command)

    def _started(self, trainer: Trainer, command: JoinGang) -> None:
        if trainer.phase == "starting":
            trainer.phase = "waiting"
            self._tell(trainer, trainer.untold or command)

    def _tell(self, trainer: Trainer, command: JoinGang | LeaveGang) -> None:
        if trainer.phase == "gone" or (trainer.untold and trainer.untold.attempt > command.attempt):
            return
        if trainer.frozen or trainer.phase == "starting":
            trainer.untold = command
            return
        trainer.untold = None
        if isinstance(command, JoinGang):
            self._enter(trainer, command)
        elif trainer.attempt <= command.attempt:
            self._leave(trainer, command)

    def _enter(self, trainer: Trainer, command: JoinGang) -> None:
        """Joining a newer attempt implies leaving the older one."""
        if trainer.phase == "in":
            if trainer.attempt >= command.attempt:
                return
            self.gang_of(trainer).break_(trainer)
        trainer.attempt = command.attempt
        trainer.phase = "in"
        self.runs[command.run].gang(command).add(trainer)

    def _leave(self, trainer: Trainer, command: LeaveGang) -> None:
        if not self.runs[trainer.run].job.plan.speaks_protocol:
            self.ended(trainer, signal=15)
            return
        if trainer.phase == "in":
            gang = self.gang_of(trainer)
            if gang.stage == "finishing":
                return
            gang.break_(trainer)
            trainer.phase = "waiting"
        trainer.left(command.attempt, command.why)

    def gang_of(self, trainer: Trainer) -> Gang:
        return self.runs[trainer.run].gangs[trainer.attempt]

    def _stop(self, command: StopWorkers) -> None:
        if self.stores.get(command.run, command.attempt + 1) <= command.attempt:
            self._end_store(command.run)
        for trainer in self._of(command.run):
            if trainer.attempt <= command.attempt:
                trainer.ending = True
                delay_ns = int(command.grace_s * S) if trainer.frozen else self.rng.randrange(MS, 100 * MS)
                self.timeline.after(delay_ns, self._end, trainer)

    def _end(self, trainer: Trainer) -> None:
        """A polite stop: exit code 0 after `bye` from one that speaks the protocol, else the signal shows."""
        if trainer.frozen:
            self.ended(trainer, signal=9)
        elif self.runs[trainer.run].job.plan.speaks_protocol:
            self.ended(trainer, code=0)
        else:
            self.ended(trainer, signal=15)

    def ended(
        self, trainer: Trainer, *, code: int | None = None, signal: int | None = None, completed: bool = False
    ) -> None:
        """The process is gone; its gang is broken, the supervisor says so."""
        if trainer.phase == "gone":
            return
        was_in = trainer.phase == "in"
        trainer.phase = "gone"
        self.trainers.pop((trainer.run, trainer.rank), None)
        if was_in:
            self.gang_of(trainer).break_(trainer)
        event = WorkerExited(
            run=trainer.run, attempt=trainer.attempt, rank=trainer.rank, node=self.name, exit_code=code, signal=signal,
            completed=completed,
        )  # fmt: skip
        self.report(event)

    def freeze(self, trainer: Trainer) -> None:
        trainer.frozen = True
        if trainer.phase == "in":
            self.gang_of(trainer).stall(trainer)

    def thaw(self, trainer: Trainer) -> None:
        if trainer.phase == "gone" or not trainer.frozen:
            return
        trainer.frozen = False
        if trainer.phase == "in":
            self.gang_of(trainer).resume(trainer)
        if trainer.untold:
            self._tell(trainer, trainer.untold)

    # --- the machine

    def lose(self) -> None:
        """The machine is gone, with everything on it."""
        self.powered = False
        self.link.lines[self.name].outbox.clear()
        self.link.cut(self.name)
        self.end_all()
        self.attempts.clear()
        self.probing.clear()
        self.epoch = 0

    def end_all(self) -> None:
        """End every trainer and store: the node is cut off from Ray, or has no power (then nobody reports it)."""
        for trainer in list(self.trainers.values()):
            self.ended(trainer, signal=9)
        for run in list(self.stores):
            self.lose_store(run)

    def boot(self) -> None:
        if self.powered:
            return
        self.powered = True
        self.partitioned = False
        self.boots += 1
        self.link.connect_soon(self.name)
