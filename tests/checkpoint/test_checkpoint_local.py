"""The local tier: written first, carried to the durable one in the background, never needed there to be lost."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_states import PATIENCE_S, leftovers, make_state, shard_state

from trainer.checkpoint import local as local_module
from trainer.checkpoint.local import LocalTier, SaveId
from trainer.checkpoint.manifest import EPHEMERAL, PERMANENT, CheckpointMeta, read_manifest
from trainer.checkpoint.outcomes import Committed, SavedLocally, SaveFailed
from trainer.checkpoint.reader import find, load
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.tiers import PathTier
from trainer.checkpoint.writer import AsyncWriter, LocalPlan

SHARDS = 2


class Node:
    """A node with a disk of its own and the writers of some shards."""

    def __init__(
        self, root: Path, name: str, shards: tuple[int, ...], attempt: int = 1, durable: bool = True, **options
    ):
        self.tier = LocalTier(root / name, options.pop("local_keep", 2), frozenset(shards))
        place = options.pop("place", root / "durable")
        self.writers = {
            shard: AsyncWriter(place, shard, SHARDS, attempt, durable=durable, **options) for shard in shards
        }
        for writer in self.writers.values():
            writer.use_local(LocalPlan(self.tier, 7))

    def save(self, step: int, kind: str = PERMANENT, state=None) -> None:
        for shard, writer in self.writers.items():
            pieces = shard_state(state or make_state(step), SHARDS, shard)
            writer.save(step, pieces, CheckpointMeta(step, step, 1, kind=kind), upload=kind == PERMANENT)

    def settle(self) -> list:
        assert all(writer.settle(PATIENCE_S) for writer in self.writers.values())
        return [outcome for writer in self.writers.values() for outcome in writer.poll()]


def of_type(kind: type, outcomes: list) -> list[int]:
    return sorted(outcome.step for outcome in outcomes if isinstance(outcome, kind))


def local_steps(node: Node) -> list[int]:
    return [save_id.step for save_id in node.tier.saves()]


def test_saves_go_to_each_nodes_disk_and_permanent_ones_on_to_the_durable_tier(tmp_path):
    nodes = [Node(tmp_path, "a", (0,)), Node(tmp_path, "b", (1,))]
    for step, kind in ((1, EPHEMERAL), (2, PERMANENT), (3, EPHEMERAL)):
        for node in nodes:
            node.save(step, kind)
    outcomes = [outcome for node in nodes for outcome in node.settle()]
    assert of_type(Committed, outcomes) == [2]
    assert of_type(SavedLocally, outcomes) == [1, 1, 2, 2, 3, 3]
    assert [path.name for path in find(tmp_path / "durable")] == ["step-00000002"]
    assert [local_steps(node) for node in nodes] == [[3, 2], [3, 2]]
    for name, tensor in make_state(2).items():
        assert torch.equal(load(tmp_path / "durable" / "step-00000002", {name: None})[name], tensor)


def test_a_node_reads_its_own_shards_alone(tmp_path):
    nodes = [Node(tmp_path, "a", (0,)), Node(tmp_path, "b", (1,))]
    for node in nodes:
        node.save(3, EPHEMERAL)
        node.settle()
    [(save_id, shards)] = nodes[1].tier.saves().items()
    assert save_id == SaveId(3, 1, 7)
    own = shard_state(make_state(3), SHARDS, 1)
    wanted = {name: Slice(piece.offset, len(piece.local)) for name, piece in own.items()}
    assert shards.covers(wanted)
    assert not shards.covers(dict.fromkeys(wanted))
    assert not shards.covers({"absent": None})
    for name, tensor in shards.read(wanted).items():
        assert torch.equal(tensor, own[name].local)


def test_replicas_on_one_node_share_a_shards_file(tmp_path):
    nodes = [Node(tmp_path, "a", (0, 1)), Node(tmp_path, "a", (0, 1), durable=False)]
    for node in nodes:
        node.save(1)
    outcomes = [outcome for node in nodes for outcome in node.settle()]
    assert of_type(SavedLocally, outcomes) == [1] * 4
    assert of_type(Committed, outcomes) == [1]
    [folder] = (tmp_path / "a").iterdir()
    shards = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    assert shards == [f"shard-{shard:05d}-of-00002.safetensors" for shard in (0, 1)]


def test_retention_waits_for_all_shards_of_the_node(tmp_path):
    node = Node(tmp_path, "a", (0, 1))
    for step in (1, 2, 3):
        node.save(step, EPHEMERAL)
    node.settle()
    assert local_steps(node) == [3, 2]
    node.writers.pop(1)
    for step in (4, 5, 6):
        node.save(step, EPHEMERAL)
    node.settle()
    assert local_steps(node) == [6, 5, 4, 3, 2], "no newer one is whole"


def test_a_flipped_bit_in_the_local_file_is_not_carried_on(tmp_path, monkeypatch):
    node = Node(tmp_path, "a", (0, 1))
    write = LocalTier.write

    def decaying(*arguments):
        shard = write(*arguments)
        path = shard.folder.path / shard.sidecar.file
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return shard

    monkeypatch.setattr(LocalTier, "write", decaying)
    node.save(1)
    outcomes = node.settle()
    assert any(
        "is not what was written there" in outcome.why for outcome in outcomes if isinstance(outcome, SaveFailed)
    )
    assert of_type(Committed, outcomes) == []
    assert find(tmp_path / "durable") == []


def test_a_full_local_disk_sends_permanent_saves_straight_on(tmp_path, monkeypatch):
    node = Node(tmp_path, "a", (0, 1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_module, "write_blocks", full)
    node.save(1, PERMANENT)
    node.save(2, EPHEMERAL)
    outcomes = node.settle()
    failed = [outcome for outcome in outcomes if isinstance(outcome, SaveFailed)]
    assert of_type(Committed, outcomes) == [1]
    assert len(failed) == 4
    assert not any(outcome.durable for outcome in failed)
    assert all("No space left on device" in outcome.why for outcome in failed)


class BlockedTier(PathTier):
    """A durable tier that takes nothing until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let = threading.Event()

    def put(self, save, content, cancelled):
        while not self.let.wait(0.01):
            if cancelled.is_set():
                raise OSError("interrupted")
        return super().put(save, content, cancelled)


def test_an_interrupted_upload_is_taken_up_by_the_next_attempt(tmp_path):
    tier = BlockedTier(tmp_path / "durable")
    first = Node(tmp_path, "a", (0, 1), place=tier)
    first.save(1)
    assert all(not writer.wait(0.1) for writer in first.writers.values())
    for writer in first.writers.values():
        writer.cancel()
    assert of_type(Committed, first.settle()) == []

    tier.let.set()
    second = Node(tmp_path, "a", (0, 1), attempt=2, place=tier)
    for shard, writer in second.writers.items():
        writer.upload(second.tier.shard(SaveId(1, 1, 7), shard, SHARDS))
    assert of_type(Committed, second.settle()) == [1]
    manifest = read_manifest(tmp_path / "durable" / "step-00000001")
    assert (manifest.attempt, manifest.meta.kind) == (2, PERMANENT)


def test_training_may_go_on_while_an_upload_is_slow_until_two_are(tmp_path):
    tier = BlockedTier(tmp_path / "durable")
    node = Node(tmp_path, "a", (0, 1), place=tier)
    node.save(1)
    node.save(2)
    saved = threading.Thread(target=node.save, args=(3,))
    saved.start()
    saved.join(0.2)
    assert saved.is_alive()
    tier.let.set()
    saved.join(PATIENCE_S)
    assert of_type(Committed, node.settle()) == [1, 2, 3]


def test_what_is_removed_while_it_is_uploaded_still_arrives(tmp_path):
    tier = BlockedTier(tmp_path / "durable")
    node = Node(tmp_path, "a", (0, 1), place=tier)
    node.save(1)
    for writer in node.writers.values():
        writer.wait(0.1)
    shutil.rmtree(tmp_path / "a" / SaveId(1, 1, 7).folder)
    tier.let.set()
    assert of_type(Committed, node.settle()) == [1]


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_local_shard_is_not_offered(tmp_path, suffix, damage):
    node = Node(tmp_path, "a", (0, 1))
    node.save(1, EPHEMERAL)
    node.settle()
    path = tmp_path / "a" / SaveId(1, 1, 7).folder / f"shard-00001-of-00002{suffix}"
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])
    [shards] = node.tier.saves().values()
    assert [sidecar.shard for sidecar in shards.sidecars] == [0]


def test_removals_cut_short_are_finished(tmp_path):
    (tmp_path / "a" / ".discarded-step").mkdir(parents=True)
    Node(tmp_path, "a", (0,))
    assert leftovers(tmp_path / "a") == []
