"""What is committed, by whom, and why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_states import PATIENCE_S, leftovers, make_state, newest_proven, save_all, shard_state

from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.manifest import CheckpointMeta, read_manifest
from trainer.checkpoint.outcomes import Committed, SaveFailed
from trainer.checkpoint.proof import mark_file, prove
from trainer.checkpoint.reader import find, load
from trainer.checkpoint.writer import AsyncWriter

META = CheckpointMeta(0, 0, 1)


def finish(writer: AsyncWriter) -> list[Committed | SaveFailed]:
    assert writer.wait(PATIENCE_S)
    return writer.poll()


@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_shards_make_one_checkpoint_that_proves(tmp_path, shards):
    [committed] = save_all(tmp_path, 100, shards=shards)
    assert committed.step == 100
    assert committed.path == str(tmp_path / "step-00000100")
    manifest = prove(committed.path)
    assert manifest.digest == committed.digest
    assert (manifest.step, manifest.shards, manifest.meta.tokens) == (100, shards, 6400)
    marks = {mark_file(shard, shards) for shard in range(shards)}
    assert set(manifest.files) | {"manifest.json"} | marks == set(os.listdir(committed.path))
    loaded = load(committed.path, dict.fromkeys(make_state()))
    for name, tensor in make_state(100).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_meta_comes_back_as_it_was(tmp_path):
    meta = CheckpointMeta(
        position=7,
        tokens=7 * 64,
        seed=3,
        data={"seed": 34521, "sha256": "ab"},
        statistics={"losses": [0.1, 1e-320, 2.5], "skipped": 0},
        rng={"cpu": "00ff"},
        mesh={"replicas": 2, "shards": 1},
    )
    writer = AsyncWriter(tmp_path, 0, 1, 4)
    writer.save(7, {"a": ShardTensor(torch.ones(2), (2,), 0)}, meta)
    [committed] = finish(writer)
    manifest = newest_proven(tmp_path).manifest
    assert manifest.meta == meta
    assert (manifest.attempt, manifest.torch) == (4, str(torch.__version__))
    assert manifest.digest == committed.digest == read_manifest(committed.path).digest


def test_the_state_may_change_as_soon_as_save_returns(tmp_path):
    tensor = torch.zeros(1000)
    writer = AsyncWriter(tmp_path, 0, 1, 1)
    for step in (1, 2, 3):
        tensor.fill_(step)
        assert writer.save(step, {"a": ShardTensor(tensor, (1000,), 0)}, META) >= 0
        tensor.fill_(-1)
    assert [outcome.step for outcome in finish(writer)] == [1, 2, 3]
    for step, path in zip((3, 2, 1), find(tmp_path), strict=True):
        assert load(path, {"a": None})["a"].unique().tolist() == [step]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shard", [0, 1])
def test_a_state_that_is_not_finite_is_refused_by_all(tmp_path, value, shard):
    state = make_state()
    state["model.embed"][0 if shard == 0 else -1, 2] = value
    outcomes = save_all(tmp_path, 100, state)
    assert outcomes
    assert all(isinstance(outcome, SaveFailed) for outcome in outcomes)
    assert any("model.embed is not finite" in outcome.why for outcome in outcomes)
    assert find(tmp_path) == []


def test_shard_0_reports_the_reason_of_another_shard(tmp_path):
    state = make_state()
    state["model.embed"][-1, 0] = float("nan")
    first = save_all(tmp_path, 100, state)[0]
    assert first.why == "shard 1 of 2: model.embed is not finite; such a state is never committed"


def test_statistics_that_are_not_finite_are_refused(tmp_path):
    writer = AsyncWriter(tmp_path, 0, 1, 1)
    writer.save(1, {}, CheckpointMeta(1, 1, 1, statistics={"losses": [float("nan")]}))
    [failed] = finish(writer)
    assert isinstance(failed, SaveFailed)
    assert (find(tmp_path), leftovers(tmp_path)) == ([], [])


def test_a_shard_that_never_comes_is_given_up_after_the_deadline(tmp_path):
    save_all(tmp_path, 50)
    writer = AsyncWriter(tmp_path, 0, 2, 1, commit_timeout_s=0.05)
    writer.save(100, shard_state(make_state(), 2, 0), META)
    [failed] = finish(writer)
    assert failed.why == "1 of 2 shards did not come in time, shard-00001-of-00002.json first"
    assert [path.name for path in find(tmp_path)] == ["step-00000050"]
    assert leftovers(tmp_path) == []


def test_cancel_ends_the_wait_for_the_others(tmp_path):
    writer = AsyncWriter(tmp_path, 0, 2, 1, commit_timeout_s=10 * PATIENCE_S)
    writer.save(100, shard_state(make_state(), 2, 0), META)
    writer.cancel()
    assert [outcome.why.split(": ")[-1] for outcome in finish(writer)] == ["cancelled"]
    writer.save(150, shard_state(make_state(), 2, 0), META)
    assert finish(writer) == [SaveFailed(150, "cancelled")]
    assert (find(tmp_path), leftovers(tmp_path)) == ([], [])


def test_a_committed_step_is_left_as_it_is_and_reported_again(tmp_path):
    [first] = save_all(tmp_path, 100)
    again = save_all(tmp_path, 100, make_state(7), attempt=2)
    assert [(outcome.path, outcome.digest) for outcome in again] == [(first.path, first.digest)]
    assert torch.equal(load(first.path, {"model.embed": None})["model.embed"], make_state(100)["model.embed"])


def test_a_committed_step_that_is_damaged_is_not_reported_as_good(tmp_path):
    [first] = save_all(tmp_path, 100)
    (Path(first.path) / "manifest.json").write_text("{}")
    assert [type(outcome) for outcome in save_all(tmp_path, 100, attempt=2)] == [SaveFailed]


def stall(root, attempt: int, step: int = 100) -> AsyncWriter:
    """A shard 0 writer that has its own shard down and waits for another that doesn't come."""
    writer = AsyncWriter(root, 0, 2, attempt, commit_timeout_s=10 * PATIENCE_S)
    writer.save(step, shard_state(make_state(step), 2, 0), META)
    sidecar = root / f".step-{step:08d}.attempt-{attempt}.tmp" / "shard-00000-of-00002.json"
    while not sidecar.exists():
        writer.wait(0.01)
    return writer


def test_a_newer_attempt_ends_an_older_ones_save(tmp_path):
    old = stall(tmp_path, 1)
    save_all(tmp_path, 100, attempt=2)
    [failed] = finish(old)
    assert isinstance(failed, SaveFailed)
    assert leftovers(tmp_path) == []
    prove(tmp_path / "step-00000100")


def test_an_older_attempt_leaves_a_newer_ones_save_alone(tmp_path):
    new = stall(tmp_path, 5)
    AsyncWriter(tmp_path, 0, 2, 4)
    other = AsyncWriter(tmp_path, 1, 2, 5)
    other.save(100, shard_state(make_state(100), 2, 1), META)
    assert [type(outcome) for outcome in finish(new)] == [Committed]
    prove(tmp_path / "step-00000100")


def test_the_first_of_two_attempts_to_commit_a_step_wins(tmp_path):
    new = stall(tmp_path, 5)
    [first] = save_all(tmp_path, 100, attempt=4)
    [failed] = finish(new)
    assert "another attempt has committed this step" in failed.why
    assert prove(first.path).attempt == 4
    assert leftovers(tmp_path) == []


def test_what_a_given_up_save_left_goes_with_the_next(tmp_path):
    late = tmp_path / ".step-00000050.attempt-1.tmp"
    writer = AsyncWriter(tmp_path, 0, 1, 1)
    late.mkdir()  # by a slow shard, after shard 0's writer had given up
    writer.save(100, {"a": ShardTensor(torch.ones(2), (2,), 0)}, META)
    assert [type(outcome) for outcome in finish(writer)] == [Committed]
    assert leftovers(tmp_path) == []


def test_a_sidecar_of_another_save_is_not_taken(tmp_path):
    [committed] = save_all(tmp_path, 50)
    writer = stall(tmp_path, 1)
    name = "shard-00001-of-00002"
    aside = tmp_path / ".step-00000100.attempt-1.tmp"
    for suffix in (".safetensors", ".json"):
        (aside / (name + suffix)).write_bytes((Path(committed.path) / (name + suffix)).read_bytes())
    [failed] = finish(writer)
    assert failed.why == f"{name}.json belongs to another save"
