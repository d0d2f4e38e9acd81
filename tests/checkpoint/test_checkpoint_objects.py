"""A durable tier without renames: a checkpoint exists when its manifest does, whatever fails on the way there."""

from __future__ import annotations

import json
import sys
import uuid

import pytest
import torch
from checkpoint_states import PATIENCE_S, make_state, shard_state

from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.local import LocalTier
from trainer.checkpoint.manifest import EPHEMERAL, PERMANENT, CheckpointMeta, read_manifest
from trainer.checkpoint.outcomes import Committed, SaveFailed
from trainer.checkpoint.proof import is_proven, prove
from trainer.checkpoint.reader import load
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.tiers import ObjectTier, PathTier, open_tier
from trainer.checkpoint.urls import StorageError
from trainer.checkpoint.writer import AsyncWriter, LocalPlan

SHARDS = 2


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/run"


def save(tier, folder, step: int, *, kind: str = PERMANENT, attempt: int = 1, **options) -> list:
    """Through a local tier, as the trainer does for a URL."""
    writers = [AsyncWriter(tier, shard, SHARDS, attempt, **options) for shard in range(SHARDS)]
    for shard, writer in enumerate(writers):
        writer.use_local(LocalPlan(LocalTier(folder, 2, frozenset(range(SHARDS))), attempt))
        writer.save(step, shard_state(make_state(step), SHARDS, shard), CheckpointMeta(step, step, 1, kind=kind))
    assert all(writer.settle(PATIENCE_S) for writer in writers)
    return [outcome for writer in writers for outcome in writer.poll() if isinstance(outcome, Committed | SaveFailed)]


def names(tier) -> list[str]:
    return [folder.name for folder in tier.folders()]


def test_saves_arrive_proven_and_are_read_by_any_mesh(url, tmp_path):
    tier = open_tier(url)
    assert names(tier) == []
    [committed] = save(tier, tmp_path, 100)
    assert committed.path == f"{url.replace('memory://', 'memory:///')}/step-00000100.attempt-1"
    [folder] = tier.folders()
    assert prove(folder).digest == committed.digest
    assert is_proven(folder, read_manifest(folder))
    state = make_state(100)
    for name, tensor in load(committed.path, dict.fromkeys(state)).items():
        assert torch.equal(tensor, state[name])
    part = load(folder, {"count": Slice(3, 5)})["count"]
    assert torch.equal(part, state["count"][3:8])


def test_retention(url, tmp_path):
    tier = open_tier(url)
    for step, kind in ((1, EPHEMERAL), (2, PERMANENT), (3, EPHEMERAL), (4, EPHEMERAL)):
        save(tier, tmp_path, step, kind=kind)
    assert names(tier) == ["step-00000004.attempt-1", "step-00000002.attempt-1"]


def test_a_damaged_one_is_passed_over_and_its_step_saved_again(url, tmp_path):
    tier = open_tier(url)
    save(tier, tmp_path, 100)
    [folder] = tier.folders()
    shard = f"{folder.prefix}/shard-00001-of-00002.safetensors"
    content = tier.filesystem.cat_file(shard)
    tier.filesystem.pipe_file(shard, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointDamagedError, match=r"shard-00001-of-00002.safetensors has another digest"):
        prove(folder)
    tier.set_aside(folder)
    assert names(tier) == []
    assert tier.filesystem.cat_file(shard)
    save(tier, tmp_path, 100, attempt=2)
    assert names(tier) == ["step-00000100.attempt-2"]


def test_a_step_that_is_there_is_reported_again(url, tmp_path):
    tier = open_tier(url)
    [first] = save(tier, tmp_path, 100)
    assert [outcome.digest for outcome in save(tier, tmp_path, 100, attempt=2)] == [first.digest]
    assert names(tier) == ["step-00000100.attempt-1"]


class RateLimitError(Exception):
    """As a storage's library has them: no OSError."""


class FailingStore:
    """An fsspec file system of which the n-th writing operation fails, and all after it."""

    def __init__(self, filesystem, due: int) -> None:
        self._filesystem = filesystem
        self.left = due
        self.failed = False

    def __getattr__(self, name):
        found = getattr(self._filesystem, name)
        if name not in ("open", "pipe_file", "rm_file", "ls", "info"):
            return found

        def counted(*arguments, **options):
            self.left -= 1
            if self.left <= 0:
                self.failed = True
                raise RateLimitError("slow down")
            return found(*arguments, **options)

        return counted


def save_one_shard(tier, folder, attempt: int) -> list:
    """Outcomes of a save of step 200; what the constructor raises stands for them."""
    try:
        writer = AsyncWriter(tier, 0, 1, attempt, commit_timeout_s=0.2)
    except OSError as error:
        return [SaveFailed(200, str(error))]
    writer.use_local(LocalPlan(LocalTier(folder, 2, frozenset([0])), attempt))
    writer.save(200, shard_state(make_state(200), 1, 0), CheckpointMeta(200, 1, 1))
    assert writer.settle(PATIENCE_S)
    return [outcome for outcome in writer.poll() if isinstance(outcome, Committed | SaveFailed)]


def test_a_failure_of_any_request_costs_only_this_save(url, tmp_path):
    tier = open_tier(url)
    save(tier, tmp_path, 100)
    [older] = tier.folders()
    before = prove(older).digest
    for due in range(1, 200):
        failing = FailingStore(tier.filesystem, due)
        [outcome] = save_one_shard(ObjectTier(failing, tier.prefix), tmp_path / str(due), 2)
        assert prove(older).digest == before
        newer = [folder for folder in tier.folders() if folder.name != older.name]
        assert [prove(folder).step for folder in newer] in ([], [200])
        if isinstance(outcome, Committed):
            assert newer
        else:
            assert "slow down" in outcome.why
        for folder in newer:
            tier.remove(folder)
        if not failing.failed:
            break
    assert isinstance(outcome, Committed)
    assert due > 8
    AsyncWriter(tier, 0, 1, 3)
    assert [path.rpartition("/")[2] for path in tier.filesystem.ls(tier.prefix, detail=False)] == [older.name]


def test_what_was_left_unfinished_goes_with_the_next_attempt(url, tmp_path):
    tier = open_tier(url)
    save(tier, tmp_path, 100)
    tier.open("step-00000200.attempt-1").write("shard-00000-of-00002.safetensors", b"half")
    tier.open("step-00000200.attempt-5").write("shard-00000-of-00002.safetensors", b"half")
    assert names(tier) == ["step-00000100.attempt-1"]
    AsyncWriter(tier, 0, SHARDS, 4)
    left = [path.rpartition("/")[2] for path in tier.filesystem.ls(tier.prefix, detail=False)]
    assert sorted(left) == ["step-00000100.attempt-1", "step-00000200.attempt-5"]


def test_a_manifest_says_its_files(url, tmp_path):
    save(open_tier(url), tmp_path, 100)
    [folder] = open_tier(url).folders()
    files = json.loads(folder.read("manifest.json"))["files"]
    assert all(folder.stat(name).bytes == said["bytes"] for name, said in files.items())


def test_a_file_url_is_a_folder_with_renames(tmp_path):
    tier = open_tier(f"file://{tmp_path}/run")
    assert isinstance(tier, PathTier)
    assert tier.root == tmp_path / "run"


@pytest.mark.parametrize("url", ["nonsense://bucket/run", "s3://bucket/run"])
def test_a_protocol_without_its_package_is_refused_in_a_sentence(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=f"{url} can't be used: .+"):
        open_tier(url)


def test_without_fsspec_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StorageError, match="needs the package fsspec: pip install fsspec"):
        open_tier("s3://bucket/run")
