"""Marks: what they vouch for, and what takes them away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_states import PATIENCE_S, make_state, save_all, shard_state

from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.folders import PathFolder
from trainer.checkpoint.manifest import CheckpointMeta, read_manifest
from trainer.checkpoint.outcomes import Committed, Warned
from trainer.checkpoint.proof import is_proven, mark_file
from trainer.checkpoint.reader import load
from trainer.checkpoint.tiers import PathTier
from trainer.checkpoint.writer import AsyncWriter


def proven(path: Path) -> bool:
    return is_proven(PathFolder(path), read_manifest(path))


@pytest.fixture
def saved(tmp_path) -> Path:
    save_all(tmp_path, 100)
    return tmp_path / "step-00000100"


def flip(path: Path, *, keep_time: bool) -> None:
    """Turn a bit, with or without a trace in the file's times."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    moved = 0 if keep_time else 10**9
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + moved))


def test_a_saved_checkpoint_is_proven_before_it_is_needed(saved):
    assert proven(saved)


@pytest.mark.parametrize("shard", [0, 1])
def test_without_a_mark_it_is_not_proven_but_loads(saved, shard):
    (saved / mark_file(shard, 2)).unlink()
    assert not proven(saved)
    assert torch.equal(load(saved, {"count": None})["count"], make_state(100)["count"])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_mark_is_none(saved, content):
    (saved / mark_file(1, 2)).write_bytes(content)
    assert not proven(saved)


def test_a_mark_does_not_hold_for_a_file_that_changed_since(saved):
    flip(saved / "shard-00001-of-00002.safetensors", keep_time=False)
    assert not proven(saved)


def test_a_flip_that_no_mark_shows_is_found_by_reading(saved):
    flip(saved / "shard-00001-of-00002.safetensors", keep_time=True)
    assert proven(saved)
    with pytest.raises(CheckpointDamagedError, match=r"shard-00001-of-00002.safetensors has another digest"):
        load(saved, dict.fromkeys(make_state()))


def test_a_mark_does_not_hold_for_another_checkpoint(saved, tmp_path):
    save_all(tmp_path / "other", 100, attempt=2)
    (saved / "manifest.json").write_bytes((tmp_path / "other" / "step-00000100" / "manifest.json").read_bytes())
    assert not proven(saved)


def test_a_vanished_shard_is_not_proven(saved):
    (saved / "shard-00000-of-00002.safetensors").unlink()
    assert not proven(saved)


class DecayingTier(PathTier):
    """A disk on which a bit turns right after the commit."""

    def commit(self, *arguments):
        folder, manifest = super().commit(*arguments)
        flip(folder.path / "shard-00000-of-00001.safetensors", keep_time=True)
        return folder, manifest


def test_what_does_not_prove_after_the_commit_is_reported_and_not_marked(tmp_path):
    writer = AsyncWriter(DecayingTier(tmp_path), 0, 1, 1)
    writer.save(100, shard_state(make_state(), 1, 0), CheckpointMeta(1, 1, 1))
    assert writer.settle(PATIENCE_S)
    committed, warned = writer.poll()
    assert isinstance(committed, Committed)
    assert isinstance(warned, Warned)
    assert "does not prove" in warned.why
    assert not proven(tmp_path / "step-00000100")
