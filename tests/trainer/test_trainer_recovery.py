"""Trainers killed at every point of a step, with the undisturbed run as the measure: equal bits, or it failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import STEPS, Reference, Supervisor, digests, losses

STRUCK_STEP = 4

MakeRun = Callable[..., Supervisor]


def assert_equals(run: Supervisor, reference: Reference) -> None:
    """Every rank's loss and norm of every step, and its final weights and moments, bit for bit."""
    assert losses(run.folder) == reference.losses
    assert digests(run.folder) == reference.digests


def sources(run: Supervisor, attempt: int) -> set[tuple[str, int]]:
    """(source, step) of the state that the ranks began this attempt with."""
    return {(m["source"], m["step"]) for m in run.of_type("phase") if m["phase"] == "train" and m["attempt"] == attempt}


def test_an_undisturbed_run_is_reproducible(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    run.start()
    run.wait_completed()
    assert [sorted(rank) for rank in reference.losses] == [list(range(1, STEPS + 1))] * 4
    assert [m["reason"] for m in run.of_type("bye")] == ["completed"] * 4
    assert_equals(run, reference)


@pytest.mark.parametrize(
    ("point", "restored"),
    [
        ("forward", STRUCK_STEP - 1),
        ("backward", STRUCK_STEP - 1),
        ("before_vote", STRUCK_STEP - 1),
        ("after_vote", STRUCK_STEP),
        ("optimizer", STRUCK_STEP),
        ("after_step", STRUCK_STEP),
    ],
)
def test_killed_at_a_point_of_a_step(point: str, restored: int, reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    run.start({1: [{"point": point, "step": STRUCK_STEP, "do": "kill"}]})
    assert run.wait_exit(1) == signal.SIGKILL
    run.recover([1])
    run.wait_completed()
    assert sources(run, 2) == {("peers", restored)}
    assert_equals(run, reference)


def test_killed_inside_the_vote(reference: Reference, make_run: MakeRun) -> None:
    """Whether the killed rank's ballot has left it is a race: both outcomes must give the same bits."""
    run = make_run()
    run.start({2: [{"point": "in_vote", "step": STRUCK_STEP, "do": "kill"}]})
    run.wait_exit(2)
    run.recover([2])
    run.wait_completed()
    assert sources(run, 2) in ({("peers", STRUCK_STEP - 1)}, {("peers", STRUCK_STEP)})
    assert_equals(run, reference)


def test_vote_complete_on_one_rank_and_lost_on_the_others(reference: Reference, make_run: MakeRun) -> None:
    """Rank 0 applies the step; 1 and 2 lose the vote; 3 dies. The two finish from the gradients that they kept."""
    run = make_run()
    voted = str(run.folder / "voted")
    strike = {"point": "in_vote", "step": STRUCK_STEP, "await": voted}
    run.start(
        {
            0: [{"point": "after_step", "step": STRUCK_STEP, "mark": voted, "do": "nothing"}],
            1: [{**strike, "do": "raise"}],
            2: [{**strike, "do": "raise"}],
            3: [{**strike, "do": "kill"}],
        }
    )
    run.wait_exit(3)
    left = run.recover([3])
    assert [(m["step"], m["voted_step"], m["holds_gradients"]) for m in left] == [
        (STRUCK_STEP, STRUCK_STEP, False),
        (STRUCK_STEP - 1, STRUCK_STEP - 1, True),
        (STRUCK_STEP - 1, STRUCK_STEP - 1, True),
    ]
    run.wait_completed()
    assert sources(run, 2) == {("peers", STRUCK_STEP)}
    assert_equals(run, reference)


def test_killed_again_while_recovering(reference: Reference, make_run: MakeRun) -> None:
    """The replacement dies in its first step, and then another rank of the same replica."""
    run = make_run()
    run.start(
        {
            0: [{"point": "optimizer", "step": STRUCK_STEP + 1, "do": "kill"}],
            1: [{"point": "backward", "step": STRUCK_STEP, "do": "kill"}],
        }
    )
    run.wait_exit(1)
    run.leave([0, 2, 3])
    run.fork_rank(1, [{"point": "before_vote", "step": STRUCK_STEP, "do": "kill"}])
    run.join("peers")
    run.wait_exit(1)
    run.recover([1])
    run.wait_exit(0)
    run.recover([0])
    run.wait_completed()
    assert_equals(run, reference)


def test_killed_at_the_last_step(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    run.start({1: [{"point": "after_vote", "step": STEPS, "do": "kill"}]})
    run.wait_exit(1)
    run.recover([1])
    run.wait_completed()
    assert_equals(run, reference)


def test_a_shard_without_a_holder_comes_from_the_checkpoint(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    committed = run.folder / "committed"
    strike = [{"point": "after_vote", "step": 5, "await": str(committed), "do": "kill"}]
    run.start({1: strike, 3: strike})
    run.wait(lambda pid, m: m["type"] == "checkpoint" and m["step"] == 3)
    committed.touch()
    run.wait_exit(1)
    run.wait_exit(3)
    run.recover([1, 3])
    run.wait_completed()
    assert sources(run, 2) == {("checkpoint", 3)}
    assert_equals(run, reference)


def test_leave_frees_a_rank_that_waits_for_a_stopped_peer(reference: Reference, make_run: MakeRun) -> None:
    """Nothing but the order to leave can free them: the peer lives and stays silent."""
    run = make_run()
    stopped = run.folder / "stopped"
    run.start({3: [{"point": "backward", "step": STRUCK_STEP, "mark": str(stopped), "do": "stop"}]})
    run.wait_step(STRUCK_STEP - 1)
    _, status = os.waitpid(run.pids[3], os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    left = run.leave([0, 1, 2])
    assert [m["step"] for m in left] == [STRUCK_STEP - 1] * 3
    assert 3 not in {m.get("rank") for m in run.of_type("left")}
    run.kill(3)
    run.fork_rank(3)
    run.join("peers")
    run.wait_completed()
    assert sources(run, 2) == {("peers", STRUCK_STEP - 1)}
    assert_equals(run, reference)


def test_leave_while_the_groups_are_formed(reference: Reference, make_run: MakeRun) -> None:
    """Three ranks wait for a fourth that never comes; they are freed, and all join the next attempt."""
    run = make_run()
    for rank in range(4):
        run.fork_rank(rank)
    run.join("checkpoint", ranks=[0, 1, 2])
    for rank in range(3):
        run.wait(lambda pid, m, rank=rank: pid == run.pids[rank] and m["type"] == "phase" and m["phase"] == "init")
    left = run.leave([0, 1, 2])
    assert [m["holds_state"] for m in left] == [False] * 3
    run.join("peers")
    run.wait_completed()
    assert_equals(run, reference)


def test_leave_and_rejoin_without_a_death(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    go = run.folder / "go"
    run.start({0: [{"point": "forward", "step": STRUCK_STEP, "await": str(go), "do": "nothing"}]})
    run.wait_step(STRUCK_STEP - 1)
    left = run.leave([0, 1, 2, 3], meanwhile=go.touch)
    again = run.leave([0, 1, 2, 3])
    assert [m["step"] for m in again] == [m["step"] for m in left]
    run.join("peers")
    run.wait_completed()
    assert_equals(run, reference)


def test_an_error_of_its_own_costs_no_step(reference: Reference, make_run: MakeRun) -> None:
    """A rank that fails says so, frees the others, and joins again with all it held."""
    run = make_run()
    run.start({2: [{"point": "before_vote", "step": STRUCK_STEP, "do": "fail"}]})
    fault = run.wait(lambda pid, m: m["type"] == "fault" and m["kind"] != "peer")
    assert fault["kind"] == "exception"
    assert "struck by a test" in fault["detail"]
    run.leave([0, 1, 2, 3])
    run.join("peers")
    run.wait_completed()
    assert {m["kind"] for m in run.of_type("fault")} <= {"exception", "peer"}
    assert sources(run, 2) == {("peers", STRUCK_STEP - 1)}
    assert_equals(run, reference)


def test_a_save_in_flight_when_a_writer_dies(reference: Reference, make_run: MakeRun) -> None:
    """Rank 1 writes shard 1 of the checkpoint of step 3. The step is saved again by its replacement."""
    run = make_run()
    run.start({1: [{"point": "after_step", "step": 3, "do": "kill"}]})
    run.wait_exit(1)
    run.recover([1])
    run.wait_completed()
    assert {m["step"] for m in run.of_type("checkpoint")} >= {3, 6, STEPS}
    assert_equals(run, reference)
    assert checkpoints(run.folder) == checkpoints(reference.folder)


def test_resuming_gives_the_same_losses(reference: Reference, make_run: MakeRun, tmp_path: Path) -> None:
    """A new run from copies of the reference's checkpoints, the newest of them damaged."""
    run = make_run()
    copy_checkpoints(reference.folder, run.folder, up_to=6)
    flip_a_bit(run.folder / "checkpoints" / "step-00000006")
    run.start()
    run.wait_completed()
    rejected = run.of_type("checkpoint_rejected")
    assert ["step-00000006" in m["path"] for m in rejected] == [True]
    assert sources(run, 1) == {("checkpoint", 3)}
    assert [sorted(rank) for rank in losses(run.folder)] == [list(range(4, STEPS + 1))] * 4
    assert all(
        found.items() <= whole.items() for found, whole in zip(losses(run.folder), reference.losses, strict=True)
    )
    assert digests(run.folder) == reference.digests
    assert checkpoints(run.folder) == checkpoints(reference.folder)


def test_a_checkpoint_on_demand(reference: Reference, make_run: MakeRun) -> None:
    """Asked of one rank alone: the vote carries it to all, so that all save after the same step."""
    run = make_run(checkpoint={"interval_steps": 100})
    run.start({0: [{"point": "forward", "step": 3, "await": str(run.folder / "asked"), "do": "nothing"}]})
    run.wait_step(2, rank=2)
    run.worker(2).send({"type": "checkpoint", "attempt": 1})
    (run.folder / "asked").touch()
    run.wait_completed()
    steps = [m["step"] for m in run.of_type("checkpoint")]
    assert len(steps) == 2
    assert 3 <= steps[0] < steps[1] == STEPS
    assert_equals(run, reference)


def test_stop_ends_a_trainer_that_waits_for_others(make_run: MakeRun) -> None:
    run = make_run()
    run.start({3: [{"point": "forward", "step": 3, "do": "stop"}]})
    run.wait_step(2)
    os.waitpid(run.pids[3], os.WUNTRACED)
    run.worker(0).send({"type": "stop", "grace_s": 1.0})
    assert run.wait_exit(0) == 0
    assert run.wait(lambda pid, m: m["type"] == "bye" and pid == run.pids[0])["reason"] == "stopped"


def checkpoints(folder: Path) -> dict[str, dict[str, str]]:
    """step folder -> shard file -> digest, of the committed ones."""
    found = {}
    for manifest in sorted((folder / "checkpoints").glob("step-*/manifest.json")):
        files = json.loads(manifest.read_text())["files"]
        found[manifest.parent.name] = {n: f["tree_sha256"] for n, f in files.items() if n.endswith(".safetensors")}
    return found


def copy_checkpoints(source: Path, target: Path, up_to: int) -> None:
    for path in (source / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) <= up_to:
            shutil.copytree(path, target / "checkpoints" / path.name)


def flip_a_bit(checkpoint: Path) -> None:
    path = sorted(checkpoint.glob("*.safetensors"))[-1]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
