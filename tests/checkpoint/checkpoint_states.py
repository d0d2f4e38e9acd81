"""Checkpoints of known tensors, written by as many writers as a test asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.manifest import CheckpointMeta, Manifest
from trainer.checkpoint.proof import prove
from trainer.checkpoint.reader import find
from trainer.checkpoint.slices import chunk
from trainer.checkpoint.writer import AsyncWriter

PATIENCE_S = 60.0


def make_state(step: int = 1) -> dict[str, torch.Tensor]:
    """Tensors with uneven, tiny and empty dimensions; a function of `step`."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model.embed": torch.randn(7, 5, generator=generator),
        "model.norm": torch.randn(3, generator=generator).bfloat16(),
        "exp_avg.embed": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "exp_avg_sq.one": torch.rand(1, 2, 2, generator=generator),
        "count": torch.arange(9, dtype=torch.int64),
        "none": torch.empty(0, 4),
    }


def shard_state(state: Mapping[str, torch.Tensor], shards: int, shard: int) -> dict[str, ShardTensor]:
    """As FSDP2 would cut it: views into `state`, some of them empty."""
    pieces = {name: chunk(len(tensor), shards, shard) for name, tensor in state.items()}
    return {
        name: ShardTensor(tensor[pieces[name].offset : pieces[name].end], tuple(tensor.shape), pieces[name].offset)
        for name, tensor in state.items()
    }


def save_all(root: Path, step: int, state=None, *, shards: int = 2, attempt: int = 1, **options) -> list:
    """Save a state with all writers of an attempt; what shard 0's writer, then the others, reported."""
    writers = [AsyncWriter(root, shard, shards, attempt, **options) for shard in range(shards)]
    for shard, writer in enumerate(writers):
        writer.save(step, shard_state(state or make_state(step), shards, shard), CheckpointMeta(step, step * 64, 1))
    assert all(writer.settle(PATIENCE_S) for writer in writers)
    return [outcome for writer in writers for outcome in writer.poll()]


class NewestProven(NamedTuple):
    """`path` and `manifest` are None when none proves. `rejected`: newer ones that were passed over, and why."""

    path: Path | None
    manifest: Manifest | None
    rejected: list[tuple[Path, str]]


def newest_proven(root: Path) -> NewestProven:
    """What a restart goes on from, every byte of it read."""
    rejected: list[tuple[Path, str]] = []
    for path in find(root):
        try:
            return NewestProven(path, prove(path), rejected)
        except CheckpointDamagedError as error:
            rejected.append((path, error.why))
    return NewestProven(None, None, rejected)


def leftovers(root: Path) -> list[str]:
    """Names of hidden entries: what unfinished saves and removals left."""
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))
