"""Evaluation in the loop: training stays the same bits, whatever happens in between; what rank 0's log holds then."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import STEPS, Reference, Supervisor, digests, losses

MakeRun = Callable[..., Supervisor]


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> dict:
    path = tmp_path_factory.mktemp("held-out") / "texts.jsonl"
    texts = [("the first of some texts " * 9, "web"), ("def f(x):\n    return x\n" * 5, "code")]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    sets = [
        {"name": "texts", "texts": [str(path)]},
        {"name": "files", "paths": [str(tokens)], "max_sequences": 5},
    ]
    return {"sets": sets, "interval_steps": 2, "at_start": True}


def logged(run: Supervisor) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def results(run: Supervisor) -> dict[int, dict]:
    return {m["step"]: m["results"] for m in logged(run) if m["kind"] == "evaluation"}


def assert_whole(run: Supervisor, reference: Reference) -> None:
    """Training as without evaluation, and each line of the log once."""
    assert losses(run.folder) == reference.losses
    assert digests(run.folder) == reference.digests
    lines = [(m["kind"], m["step"]) for m in logged(run)]
    assert [step for kind, step in lines if kind == "step"] == list(range(1, STEPS + 1))
    assert [step for kind, step in lines if kind == "evaluation"] == [0, 2, 4, 6, STEPS]
    assert [step for _, step in lines] == sorted(step for _, step in lines)


@pytest.fixture(scope="session")
def undisturbed(standby, tmp_path_factory: pytest.TempPathFactory, write_config, evaluation) -> Supervisor:
    folder = tmp_path_factory.mktemp("evaluated")
    run = Supervisor(standby, folder, write_config(folder, evaluation=evaluation))
    try:
        run.start()
        run.wait_completed()
    finally:
        run.close()
    return run


def test_training_is_the_same_bits_with_and_without(undisturbed: Supervisor, reference: Reference) -> None:
    assert_whole(undisturbed, reference)
    found = results(undisturbed)
    assert set(found[0]) == {"texts", "texts/web", "texts/code", "files"}
    assert found[0] != found[STEPS]


def test_the_supervisor_hears_of_it_and_of_the_training_after_it(undisturbed: Supervisor) -> None:
    phases = [m for pid, m in undisturbed.said if m["type"] == "phase" and pid == undisturbed.pids[0]]
    order = [m["phase"] for m in phases if m["phase"] in ("train", "evaluate")]
    assert order[:3] == ["train", "evaluate", "train"]
    assert {(m["source"], m["step"]) for m in phases if m["phase"] == "train"} == {("init", 0)}


def test_scores_do_not_depend_on_the_world(undisturbed: Supervisor, make_run: MakeRun, evaluation: dict) -> None:
    run = make_run(replicas=1, shards=1, evaluation={**evaluation, "interval_steps": 0, "at_end": False})
    run.start()
    run.wait_completed()
    assert results(run)[0] == results(undisturbed)[0]


def test_killed_inside_an_evaluation(
    undisturbed: Supervisor, reference: Reference, make_run: MakeRun, evaluation: dict
) -> None:
    """The survivors are freed from it, and it is made again from the same state."""
    run = make_run(evaluation=evaluation)
    run.start({2: [{"point": "evaluate", "step": 4, "do": "kill"}]})
    assert run.wait_exit(2) == signal.SIGKILL
    run.recover([2])
    run.wait_completed()
    assert_whole(run, reference)
    assert results(run) == results(undisturbed)


def test_back_to_a_checkpoint_the_log_begins_again_there(
    undisturbed: Supervisor, reference: Reference, make_run: MakeRun, evaluation: dict
) -> None:
    run = make_run(evaluation=evaluation)
    run.start({0: [{"point": "after_step", "step": 5, "do": "kill"}]})
    assert run.wait_exit(0) == signal.SIGKILL
    run.recover([0], restore="checkpoint")
    run.wait_completed()
    assert_whole(run, reference)
    assert results(run) == results(undisturbed)
    assert {m["attempt"] for m in logged(run) if m["step"] > 3} == {2}
    superseded = (run.folder / "log.superseded.jsonl").read_text().splitlines()
    assert [(m["kind"], m["step"]) for m in map(json.loads, superseded)][:2] == [("step", 4), ("evaluation", 4)]


def test_a_step_finished_by_the_recovery_is_in_the_log(reference: Reference, make_run: MakeRun) -> None:
    """Rank 0 dies between the vote and its line: the one that takes its place writes it."""
    run = make_run()
    run.start({0: [{"point": "after_vote", "step": 4, "do": "kill"}]})
    run.wait_exit(0)
    run.recover([0])
    run.wait_completed()
    assert [m["step"] for m in logged(run)] == list(range(1, STEPS + 1))
    assert digests(run.folder) == reference.digests
