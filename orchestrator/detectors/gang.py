"""Folds what single workers say into what the core decides on: the gang formed, restored, made its first step.

Pure: time is an argument. Level, not edge: the fold looks at the latest status of each rank, so a lost or repeated message,
or a new daemon with an empty memory, changes nothing but the moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from orchestrator.link.messages import WorkerStatus
from orchestrator.recovery.events import (
    FirstStep,
    GangFormed,
    GangRestored,
    RunEvent,
    RunFinished,
    StepRegained,
    StepsCounted,
)

IN_GANG = frozenset({"restore", "compile", "train", "checkpoint", "evaluate", "done"})
IN_TRAINING = frozenset({"train", "checkpoint", "evaluate", "done"})
COUNT_INTERVAL_NS = 5_000_000_000
# The gang's state is as old as its oldest source.
SOURCES = ("init", "checkpoint", "peers")


class GangTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What the core knows of the attempt that is being watched. `step` is the highest that all ranks are known to have."""

    run: str
    attempt: int
    world_size: int
    step: int
    awaits_form: bool
    awaits_restore: bool
    awaits_first_step: bool
    awaits_regain: bool


class GangFold:
    """One run. `update` takes statuses as they come; `events` says what has become true for the target and was not said yet."""

    def __init__(self) -> None:
        self._ranks: dict[int, WorkerStatus] = {}
        self._observed_ns: dict[int, int] = {}
        self._said: set[tuple[int, str]] = set()
        self._counted_ns = 0
        self._counted_step = 0
        self._stalls: dict[int, tuple[float, float]] = {}  # rank -> (checkpoint, data) ms already counted

    @property
    def workers(self) -> Mapping[int, WorkerStatus]:
        return self._ranks

    def update(self, statuses: Iterable[WorkerStatus], now_ns: int) -> None:
        for status in statuses:
            known = self._ranks.get(status.rank)
            if known and (
                known.attempt > status.attempt or (known.attempt == status.attempt and known.phase == "done")
            ):
                continue
            if known and known.attempt != status.attempt:
                self._stalls.pop(status.rank, None)
            self._ranks[status.rank] = status
            self._observed_ns[status.rank] = now_ns - status.age_ns

    def completed_step(self, target: GangTarget) -> int:
        """The step that all ranks of the attempt have completed; 0 while one is missing."""
        gang = self._gang(target)
        return min((w.step for w in gang), default=0) if len(gang) == target.world_size else 0

    def evaluating_ns(self, target: GangTarget) -> int:
        """When a rank of the attempt last said that it evaluates; 0 when none does."""
        return max((self._observed_ns[w.rank] for w in self._gang(target) if w.phase == "evaluate"), default=0)

    def events(self, target: GangTarget, now_ns: int) -> list[RunEvent]:
        gang = self._gang(target)
        if len(gang) < target.world_size:
            return []
        found = [
            self._formed(target, gang),
            self._restored(target, gang),
            self._first_step(target, gang, now_ns),
            self._regained(target, gang),
            self._finished(target, gang),
        ]
        return [event for event in found if event is not None]

    def count(self, target: GangTarget, now_ns: int, *, force: bool = False) -> StepsCounted | None:
        """Steps and stalls since the last count, now and then or when a failure is about to be decided on."""
        gang = self._gang(target)
        if len(gang) < target.world_size or (not force and now_ns - self._counted_ns < COUNT_INTERVAL_NS):
            return None
        step = min(w.step for w in gang)
        checkpoint_ms, data_ms = self._new_stalls(gang)
        if step <= max(self._counted_step, target.step) and not checkpoint_ms and not data_ms:
            return None
        self._counted_ns, self._counted_step = now_ns, step
        return StepsCounted(
            run=target.run, attempt=target.attempt, step=step,
            checkpoint_stall_ns=round(checkpoint_ms * 1e6), data_stall_ns=round(data_ms * 1e6),
        )  # fmt: skip

    def _new_stalls(self, gang: list[WorkerStatus]) -> tuple[float, float]:
        """A step takes as long as its slowest rank: the largest stall of any rank is the gang's."""
        checkpoint_ms = data_ms = 0.0
        for worker in gang:
            before = self._stalls.get(worker.rank, (0.0, 0.0))
            checkpoint_ms = max(checkpoint_ms, worker.checkpoint_ms_total - before[0])
            data_ms = max(data_ms, worker.data_ms_total - before[1])
            self._stalls[worker.rank] = (worker.checkpoint_ms_total, worker.data_ms_total)
        return checkpoint_ms, data_ms

    def _gang(self, target: GangTarget) -> list[WorkerStatus]:
        return [w for w in self._ranks.values() if w.attempt == target.attempt]

    def _once(self, target: GangTarget, what: str) -> bool:
        key = (target.attempt, what)
        if key in self._said:
            return False
        self._said.add(key)
        return True

    def _formed(self, target: GangTarget, gang: list[WorkerStatus]) -> RunEvent | None:
        if not target.awaits_form or not all(w.phase in IN_GANG for w in gang) or not self._once(target, "formed"):
            return None
        return GangFormed(run=target.run, attempt=target.attempt)

    def _restored(self, target: GangTarget, gang: list[WorkerStatus]) -> RunEvent | None:
        ready = all(w.phase in IN_TRAINING and w.restored_step >= 0 for w in gang)
        if not target.awaits_restore or not ready or not self._once(target, "restored"):
            return None
        source = min((w.source for w in gang), key=lambda s: SOURCES.index(s) if s in SOURCES else 0)
        return GangRestored(
            run=target.run, attempt=target.attempt, step=min(w.restored_step for w in gang), source=source
        )

    def _first_step(self, target: GangTarget, gang: list[WorkerStatus], now_ns: int) -> RunEvent | None:
        done = all(w.first_step > 0 for w in gang)
        if not target.awaits_first_step or not done or not self._once(target, "first_step"):
            return None
        # Completed by all: when the last rank said so.
        age_ns = min(w.first_step_age_ns + now_ns - w.age_ns - self._observed_ns[w.rank] for w in gang)
        step = max(w.first_step for w in gang)
        return FirstStep(run=target.run, attempt=target.attempt, step=step, observed_at_ns=now_ns - max(0, age_ns))

    def _regained(self, target: GangTarget, gang: list[WorkerStatus]) -> RunEvent | None:
        step = min(w.step for w in gang)
        if not target.awaits_regain or step <= target.step or not self._once(target, "regained"):
            return None
        return StepRegained(run=target.run, attempt=target.attempt, step=step)

    def _finished(self, target: GangTarget, gang: list[WorkerStatus]) -> RunEvent | None:
        if not all(w.phase == "done" for w in gang) or not self._once(target, "finished"):
            return None
        return RunFinished(run=target.run, attempt=target.attempt, step=min(w.step for w in gang))
