"""Death and full disks inside a save: no half checkpoint is ever seen, and older ones stay whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_states import leftovers, newest_proven, save_all

from trainer.checkpoint import tiers as tiers_module
from trainer.checkpoint.outcomes import Committed, SaveFailed
from trainer.checkpoint.reader import find


def harness(mode: str, root: Path) -> list[dict]:
    command = [sys.executable, str(Path(__file__).with_name("crash_harness.py")), mode, str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_each_file_operation_of_a_save(tmp_path):
    seen = harness("points", tmp_path)
    assert len(seen) > 30
    assert seen[-1]["survived"]
    before, after = ["step-00000100"], ["step-00000200", "step-00000100"]
    assert seen[0]["found"] == before
    assert seen[-1]["found"] == after
    for observed in seen:
        assert observed["found"] in (before, after), observed
        assert observed["newest"] == observed["found"][0], observed
        assert observed["rejected"] == [], observed
        assert observed["leftovers"] == [], observed


def test_killed_at_random_moments_of_endless_saving(tmp_path):
    for observed in harness("random", tmp_path):
        assert observed["found"], observed
        assert observed["newest"] == observed["found"][0], observed
        assert observed["rejected"] == [], observed
        assert observed["leftovers"] == [], observed


def test_a_file_size_limit_fails_the_save_and_nothing_else(tmp_path):
    *limited, recovered = harness("limit", tmp_path)
    for observed in limited:
        assert len(observed["failed"]) == observed["outcomes"] >= 1, observed
        assert observed["found"] == ["step-00000100"], observed
        assert observed["rejected"] == [], observed
        assert observed["leftovers"] == [], observed
    assert recovered["newest"] == "step-00000200"


def test_killed_at_each_file_operation_between_the_tiers(tmp_path):
    """What was whole on the node's disk arrives in the durable tier with the next attempt; nothing there is lost."""
    seen = harness("tiers", tmp_path)
    assert len(seen) > 40
    assert seen[-1]["survived"]
    for observed in seen:
        assert observed["rejected"] == [], observed
        assert (observed["owed"], observed["lost"]) == ([], []), observed
        assert observed["leftovers"] == [], observed


class FullDisk:
    """The n-th file operation of a save finds the disk full, as do all writes after it until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, due: int) -> None:
        self.left = due
        self.failed = False
        for owner, name in ((os, "fsync"), (tiers_module, "write_blocks"), (Path, "write_bytes")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, operation):
        def wrapped(*arguments, **options):
            self.left -= 1
            if self.left <= 0:
                self.failed = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return operation(*arguments, **options)

        return wrapped


def test_a_disk_full_at_each_write_costs_only_this_save(tmp_path):
    save_all(tmp_path, 100, shards=1)
    for due in range(1, 100):
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = FullDisk(monkeypatch, due)
            outcomes = save_all(tmp_path, 200, shards=1)
        if not disk.failed:
            break
        assert [type(outcome) for outcome in outcomes] == [SaveFailed]
        assert "No space left on device" in outcomes[0].why
        visible = [path.name for path in find(tmp_path)]
        assert newest_proven(tmp_path).rejected == []
        assert leftovers(tmp_path) == []
        if visible == ["step-00000200", "step-00000100"]:  # only the sync after the rename failed
            continue
        assert visible == ["step-00000100"]
    assert due > 5
    assert [type(outcome) for outcome in outcomes] == [Committed]
