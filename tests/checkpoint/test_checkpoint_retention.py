"""Which checkpoints go: never a permanent one unasked, never the newest proven one."""

from __future__ import annotations

import pytest
from checkpoint_states import PATIENCE_S, leftovers, make_state, shard_state
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.manifest import EPHEMERAL, PERMANENT, CheckpointMeta
from trainer.checkpoint.proof import mark_file
from trainer.checkpoint.reader import find
from trainer.checkpoint.retention import Entry, Retention, surplus
from trainer.checkpoint.tiers import PathTier
from trainer.checkpoint.writer import AsyncWriter

histories = st.lists(st.tuples(st.sampled_from([PERMANENT, EPHEMERAL]), st.booleans()), max_size=12)


@given(histories, st.integers(0, 4), st.integers(1, 4))
def test_what_remains(history, keep, keep_ephemeral):
    """Newest first, (kind, proven)."""
    entries = [Entry(str(index), kind) for index, (kind, _) in enumerate(history)]
    proven = {entry.name for entry, (_, is_proven) in zip(entries, history, strict=True) if is_proven}
    gone = surplus(entries, keep, keep_ephemeral, lambda entry: entry.name in proven)
    left = [entry for entry in entries if entry not in gone]
    newest = next((entry for entry in entries if entry.name in proven), None)
    assert len(set(gone)) == len(gone)
    if newest is None:
        assert gone == []
        return
    assert left[: entries.index(newest) + 1] == entries[: entries.index(newest) + 1]
    permanent = [entry for entry in entries if entry.kind == PERMANENT]
    assert not [entry for entry in gone if entry.kind == PERMANENT and (keep == 0 or entry in permanent[:keep])]
    older = left[left.index(newest) + 1 :]
    kept = [entry for entry in older if entry.kind == EPHEMERAL]
    assert all(entry.name in proven for entry in kept)
    assert len(kept) + (newest.kind == EPHEMERAL) <= keep_ephemeral
    candidates = [entry for entry in entries if entry.kind == EPHEMERAL and entry.name in proven]
    assert all(entry in left for entry in candidates[:keep_ephemeral])


def save(root, step: int, kind: str, **options) -> None:
    writer = AsyncWriter(root, 0, 1, 1, **options)
    writer.save(step, shard_state(make_state(), 1, 0), CheckpointMeta(step, step, 1, kind=kind))
    assert writer.settle(PATIENCE_S)


def steps(root) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in find(root)]


def test_ephemeral_ones_go_and_permanent_ones_stay(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, PERMANENT if step in (2, 4) else EPHEMERAL)
    assert steps(tmp_path) == [7, 4, 2]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("keep", "left"), [(0, [4, 3, 2, 1]), (1, [4]), (2, [4, 3])])
def test_keep_is_of_permanent_ones(tmp_path, keep, left):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, PERMANENT, keep=keep)
    assert steps(tmp_path) == left


def test_the_newest_proven_one_outlives_newer_ones_that_are_not(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, PERMANENT)
    for step in (2, 3):
        (tmp_path / f"step-{step:08d}" / mark_file(0, 1)).unlink()
    assert Retention(PathTier(tmp_path), 1, 1).apply() == []
    assert steps(tmp_path) == [3, 2, 1]


def test_a_damaged_one_is_neither_counted_nor_removed(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, PERMANENT)
    (tmp_path / "step-00000003" / "manifest.json").write_text("{}")
    assert Retention(PathTier(tmp_path), 1, 1).apply() == ["step-00000001"]
    assert steps(tmp_path) == [3, 2]
