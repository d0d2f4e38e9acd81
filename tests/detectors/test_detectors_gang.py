"""The fold of workers' statuses into what has become true of the gang."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.detectors.gang import COUNT_INTERVAL_NS, GangFold, GangTarget
from orchestrator.link.messages import WorkerStatus
from orchestrator.recovery.events import (
    FirstStep,
    GangFormed,
    GangRestored,
    RunFinished,
    StepRegained,
    StepsCounted,
)

FORMING = GangTarget(
    run="r", attempt=2, world_size=2, step=10, awaits_form=True, awaits_restore=True, awaits_first_step=True,
    awaits_regain=True,
)  # fmt: skip
S = 1_000_000_000


def status(rank: int, phase: str, **more: object) -> WorkerStatus:
    return WorkerStatus(run="r", attempt=2, rank=rank, pid=100 + rank, phase=phase, **more)


def kinds(fold: GangFold, target: GangTarget = FORMING, now_ns: int = S) -> list[type]:
    return [type(event) for event in fold.events(target, now_ns)]


def test_nothing_is_true_of_a_gang_before_its_last_rank_is_there() -> None:
    fold = GangFold()
    fold.update([status(0, "train", restored_step=5, source="peers", first_step=6, step=6)], 0)
    assert kinds(fold) == []
    fold.update([status(1, "init")], 0)
    assert kinds(fold) == []
    fold.update([status(1, "restore")], 0)
    assert kinds(fold) == [GangFormed]


def test_each_word_is_said_once_and_in_order_even_when_all_comes_true_at_once() -> None:
    fold = GangFold()
    fold.update([status(r, "train", restored_step=9, source="peers", first_step=10, step=11) for r in (0, 1)], 0)
    assert kinds(fold) == [GangFormed, GangRestored, FirstStep, StepRegained]
    assert kinds(fold) == []


def test_a_gang_is_restored_from_its_oldest_source_and_lowest_step() -> None:
    fold = GangFold()
    fold.update([status(0, "train", restored_step=9, source="peers")], 0)
    fold.update([status(1, "train", restored_step=8, source="checkpoint")], 0)
    restored = next(e for e in fold.events(FORMING, S) if isinstance(e, GangRestored))
    assert (restored.step, restored.source) == (8, "checkpoint")


def test_the_first_step_is_dated_when_the_last_rank_completed_it() -> None:
    fold = GangFold()
    fold.update([status(0, "train", restored_step=9, source="peers", first_step=10, first_step_age_ns=3 * S)], 10 * S)
    fold.update([status(1, "train", restored_step=9, source="peers", first_step=10, first_step_age_ns=1 * S)], 10 * S)
    first = next(e for e in fold.events(FORMING, 12 * S) if isinstance(e, FirstStep))
    assert first.observed_at_ns == 9 * S


def test_an_older_attempt_never_replaces_a_newer_one() -> None:
    fold = GangFold()
    fold.update([status(0, "train", restored_step=9, source="peers", step=12)], 0)
    fold.update([replace(status(0, "waiting"), attempt=1)], 0)
    assert fold.workers[0].attempt == 2


def test_a_step_is_regained_only_beyond_the_highest_of_before() -> None:
    fold = GangFold()
    fold.update([status(r, "train", restored_step=5, source="checkpoint", first_step=6, step=10) for r in (0, 1)], 0)
    assert StepRegained not in kinds(fold)
    fold.update([status(0, "train", restored_step=5, source="checkpoint", first_step=6, step=11)], 0)
    assert kinds(fold) == []
    fold.update([status(1, "train", restored_step=5, source="checkpoint", first_step=6, step=11)], 0)
    assert kinds(fold) == [StepRegained]


def test_a_run_is_finished_when_all_ranks_said_bye() -> None:
    fold = GangFold()
    fold.update([status(0, "done", restored_step=0, source="init", first_step=1, step=20)], 0)
    assert RunFinished not in kinds(fold)
    fold.update([status(1, "done", restored_step=0, source="init", first_step=1, step=20)], 0)
    assert kinds(fold)[-1] is RunFinished


def test_counts_hold_the_gangs_step_and_the_slowest_ranks_stalls_once() -> None:
    fold = GangFold()
    fold.update([status(0, "train", step=14, checkpoint_ms_total=30.0), status(1, "train", step=13)], 0)
    assert fold.count(FORMING, COUNT_INTERVAL_NS) == StepsCounted(
        run="r", attempt=2, step=13, checkpoint_stall_ns=30_000_000
    )
    assert fold.count(FORMING, 2 * COUNT_INTERVAL_NS) is None
    fold.update([status(1, "train", step=14, data_ms_total=2.0)], 0)
    assert fold.count(FORMING, COUNT_INTERVAL_NS + 1) is None
    assert fold.count(FORMING, COUNT_INTERVAL_NS + 1, force=True) == StepsCounted(
        run="r", attempt=2, step=14, data_stall_ns=2_000_000
    )


def test_the_gang_evaluates_as_long_as_one_rank_says_so() -> None:
    fold = GangFold()
    fold.update([status(0, "train", restored_step=9, source="peers"), status(1, "evaluate", age_ns=S)], 7 * S)
    assert fold.evaluating_ns(FORMING) == 6 * S
    fold.update([status(1, "train", restored_step=9, source="peers")], 8 * S)
    assert fold.evaluating_ns(FORMING) == 0
