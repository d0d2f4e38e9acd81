"""A disk that is really full: a small tmpfs, where this process may mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_states import leftovers, newest_proven, save_all

from trainer.checkpoint.outcomes import Committed, SaveFailed
from trainer.checkpoint.reader import find

SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_costs_only_the_saves_that_do_not_fit(disk):
    state = {"weights.w": torch.ones(SIZE // 16)}
    assert [type(outcome) for outcome in save_all(disk, 1, state)] == [Committed]
    filler = disk / "filler"
    for free in (0, 4096, 300_000, 600_000):
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - free))
        outcomes = save_all(disk, 2, state, attempt=2, commit_timeout_s=1.0)
        assert outcomes
        assert {type(outcome) for outcome in outcomes} == {SaveFailed}, free
        assert any("No space left on device" in outcome.why for outcome in outcomes)
        newest = newest_proven(disk)
        assert (newest.path.name, newest.rejected) == ("step-00000001", [])
        filler.unlink()
    assert [type(outcome) for outcome in save_all(disk, 2, state, attempt=3)] == [Committed]
    assert [path.name for path in find(disk)] == ["step-00000002", "step-00000001"]
    assert leftovers(disk) == []
