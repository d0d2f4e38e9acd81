"""Steps that are redone or skipped, with ranks killed at every point of them: equal bits, or it failed."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trainer_harness import STEPS, Reference, Standby, Supervisor, digests, losses

MakeRun = Callable[..., Supervisor]
STEP = 4  # the one that is poisoned
LONG_STEPS = 70
SAVED_STEP = 65  # the newest before the spike
SPIKE_STEP = 67
LONG = {"steps": LONG_STEPS, "checkpoint": {"interval_steps": SAVED_STEP}}


def poison(times: int, factor: float = math.nan, step: int = STEP) -> dict:
    return {"point": "forward", "step": step, "do": "poison", "factor": factor, "times": times}


def spike(times: int = 1) -> dict:
    return poison(times, factor=50.0, step=SPIKE_STEP)


def outcomes(folder: Path, rank: int = 0) -> dict[int, str]:
    lines = (folder / "metrics" / f"rank-{rank}.jsonl").read_text().splitlines()
    return {line["step"]: line["outcome"] for line in map(json.loads, lines)}


def statistics(folder: Path, step: int) -> dict:
    manifest = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return manifest["meta"]["statistics"]


def assert_equals(run: Supervisor, reference: Reference, last: int = STEPS) -> None:
    """Losses, norms and outcomes of all steps that the run made, weights, moments, counters and window at its end."""
    for found, whole in zip(losses(run.folder), reference.losses, strict=True):
        assert found.items() <= whole.items()
    for rank in range(run.world):
        assert outcomes(run.folder, rank).items() <= outcomes(reference.folder, rank).items()
    assert digests(run.folder) == reference.digests
    assert statistics(run.folder, last) == statistics(reference.folder, last)


def run_reference(
    standby: Standby, folder: Path, config: Path, strikes: dict[int, list[dict]] | None = None
) -> Reference:
    run = Supervisor(standby, folder, config)
    try:
        run.start(strikes)
        run.wait_completed()
    finally:
        run.close()
    return Reference(losses(folder), digests(folder), folder)


@pytest.fixture(scope="module")
def skipped(standby: Standby, tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> Reference:
    """An undisturbed run of which rank 1's loss of STEP is never finite."""
    folder = tmp_path_factory.mktemp("skipped")
    return run_reference(standby, folder, write_config(folder), {1: [poison(times=2)]})


@pytest.fixture(scope="module")
def spiked(standby: Standby, tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> Reference:
    """An undisturbed run in which the loss of one rank is fifty times too high at SPIKE_STEP."""
    folder = tmp_path_factory.mktemp("spiked")
    return run_reference(standby, folder, write_config(folder, **LONG), {0: [spike()]})


def test_a_transient_nan_of_one_rank_is_redone_and_leaves_no_trace(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    run.start({2: [poison(times=1)]})
    run.wait_completed()
    assert_equals(run, reference)
    assert statistics(run.folder, STEPS)["skipped"] == 0
    assert "loss of rank 2, reduced gradient of ranks 0, 1, 2, 3, trying again" in log_of(run, 0)


def test_a_lasting_nan_is_skipped_and_counted(skipped: Reference, reference: Reference) -> None:
    folder = skipped.folder
    assert outcomes(folder) == {step: "skip" if step == STEP else "update" for step in range(1, STEPS + 1)}
    found = statistics(folder, STEPS)
    assert (found["updates"], found["skipped"], found["skipped_in_row"]) == (STEPS - 1, 1, 0)
    assert len(found["window"]["losses"]) == STEPS - 1
    before = [{step: values for step, values in rank.items() if step < STEP} for rank in reference.losses]
    assert [{step: rank[step] for step in range(1, STEP)} for rank in skipped.losses] == before
    assert skipped.digests != reference.digests


@pytest.mark.parametrize(
    ("point", "visit"),
    [
        ("after_vote", 1),  # all know that it must be tried again
        ("forward", 2),
        ("backward", 2),
        ("before_vote", 2),
        ("in_vote", 2),
        ("after_vote", 2),
        ("optimizer", 1),
        ("after_step", 1),
    ],
)
def test_killed_while_a_step_is_redone_and_skipped(
    point: str, visit: int, skipped: Reference, make_run: MakeRun
) -> None:
    run = make_run()
    strike = {"point": point, "step": STEP, "visit": visit, "do": "kill"}
    run.start({1: [poison(times=9)], 2: [strike]})
    assert run.wait_exit(2) == signal.SIGKILL
    run.recover([2])
    run.wait_completed()
    assert_equals(run, skipped)


def test_a_skip_that_one_rank_knows_of_is_carried_out_by_all(skipped: Reference, make_run: MakeRun) -> None:
    """Rank 0 has skipped; 1 and 2 lost the vote and hold gradients that are not finite; 3 dies."""
    run = make_run()
    lose_vote(run, STEP, visit=2, strikes={1: [poison(times=2)]})
    run.wait_completed()
    assert_equals(run, skipped)


def test_a_spike_is_skipped_counted_and_stays_in_the_window(spiked: Reference) -> None:
    steps = range(1, LONG_STEPS + 1)
    assert outcomes(spiked.folder) == {step: "outlier" if step == SPIKE_STEP else "update" for step in steps}
    found = statistics(spiked.folder, LONG_STEPS)
    assert (found["updates"], found["skipped"], found["skipped_in_row"]) == (LONG_STEPS - 1, 1, 0)
    assert found["window"]["losses"] == [spiked.losses[0][step][0] for step in steps]
    assert found["window"]["norms"] == [spiked.losses[0][step][1] for step in steps]


@pytest.fixture
def resumed(spiked: Reference, make_run: MakeRun) -> Iterator[Supervisor]:
    """A run that goes on from the checkpoint inside the window."""
    run = make_run(**LONG)
    name = f"step-{SAVED_STEP:08d}"
    shutil.copytree(spiked.folder / "checkpoints" / name, run.folder / "checkpoints" / name)
    yield run
    run.wait_completed()
    assert sorted(losses(run.folder)[0]) == list(range(SAVED_STEP + 1, LONG_STEPS + 1))
    assert_equals(run, spiked, LONG_STEPS)


@pytest.mark.parametrize("point", ["before_vote", "after_vote", "optimizer", "after_step"])
def test_killed_at_an_outlier_after_a_resume(point: str, resumed: Supervisor) -> None:
    resumed.start({0: [spike(times=9)], 1: [{"point": point, "step": SPIKE_STEP, "do": "kill"}]})
    resumed.wait_exit(1)
    resumed.recover([1])


def test_an_outlier_that_one_rank_knows_of_is_skipped_by_all(resumed: Supervisor) -> None:
    lose_vote(resumed, SPIKE_STEP, strikes={0: [spike()]})


def test_progress_tells_outcome_and_skipped_steps(resumed: Supervisor) -> None:
    resumed.start({0: [spike()]})
    resumed.wait_completed()
    told = {m["step"]: (m["outcome"], m["skipped"]) for m in resumed.of_type("progress")}
    assert [told[step] for step in (66, 67, 68)] == [("update", 0), ("outlier", 1), ("update", 1)]


def test_a_run_of_skipped_steps_ends_the_run_with_a_verdict(make_run: MakeRun) -> None:
    run = make_run(optimizer={"max_skipped_in_row": 2})
    run.start({1: [poison(times=2, step=step) for step in (2, 3, 5, 6, 7)]})
    for rank in range(4):
        assert run.wait_exit(rank) == 1 << 8
    faults = run.of_type("fault")
    assert {m["kind"] for m in faults} <= {"unstable", "peer"}
    detail = next(m["detail"] for m in faults if m["kind"] == "unstable")
    assert "steps 2 to 3 were all skipped, 2 in a row" in detail
    assert "loss of rank 1," in detail
    assert {m["reason"] for m in run.of_type("bye")} == {"error"}


def test_recoveries_do_not_reset_the_count_of_skipped_steps(make_run: MakeRun) -> None:
    """Rank 2 dies between the two skips; its replacement must come to the same end at the same step."""
    run = make_run(optimizer={"max_skipped_in_row": 2})
    poisons = [poison(times=9, step=step) for step in (2, 3)]
    run.start({1: poisons, 2: [{"point": "before_vote", "step": 3, "do": "kill"}]})
    run.wait_exit(2)
    run.recover([2])
    for rank in range(4):
        assert run.wait_exit(rank) == 1 << 8
    assert {m["step"] for m in run.of_type("bye")} == {3}


def lose_vote(run: Supervisor, step: int, visit: int = 1, strikes: dict[int, list[dict]] | None = None) -> None:
    """Rank 0 completes the vote and the step; 1 and 2 don't learn of it; 3 dies. Then the gang forms again."""
    voted = str(run.folder / "voted")
    strike = {"point": "in_vote", "step": step, "visit": visit, "await": voted}
    mine = strikes or {}
    run.start(
        {
            0: [*mine.get(0, []), {"point": "after_step", "step": step, "mark": voted, "do": "nothing"}],
            1: [*mine.get(1, []), {**strike, "do": "raise"}],
            2: [*mine.get(2, []), {**strike, "do": "raise"}],
            3: [*mine.get(3, []), {**strike, "do": "kill"}],
        }
    )
    run.wait_exit(3)
    left = run.recover([3])
    assert [(m["step"], m["holds_gradients"]) for m in left] == [(step, False), (step - 1, True), (step - 1, True)]


def log_of(run: Supervisor, rank: int) -> str:
    return (run.folder / f"rank-{rank}.log").read_text()
