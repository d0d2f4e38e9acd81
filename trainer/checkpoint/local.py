"""The local tier: shards on the node's own disk, which no other node can read.

    LOCAL/step-00000100.attempt-3.5f0c9a.../   shard-00001-of-00002.safetensors     renamed in when synced
                                               shard-00001-of-00002.json            its sidecar
                                               shard-00001-of-00002.manifest.json   last: this shard is there

No manifest is over all shards: which of them there are, all nodes together know (choice.py). What tells two saves of one
step apart is the id that the ranks of an attempt agree on, since shards of different saves must never be mixed.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple

from trainer.checkpoint.attempt import (
    SAVE_ERRORS,
    SaveAttempt,
    ShardContent,
    build_manifest,
    manifest_text,
    sentence,
    sidecar_text,
)
from trainer.checkpoint.blocks import check_size, write_blocks
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointError, SaveRefusedError
from trainer.checkpoint.files import clear_discarded, discard, make_root, sync, write_whole
from trainer.checkpoint.folders import PathFolder
from trainer.checkpoint.manifest import CheckpointMeta, Manifest, Sidecar, read_manifest, read_sidecar, step_name
from trainer.checkpoint.proof import mark_file
from trainer.checkpoint.reader import Shards

_NAME = re.compile(r"step-(\d{8,})\.attempt-(\d+)\.([0-9a-f]{16})")
_MANIFESTS = re.compile(r"shard-(\d{5})-of-(\d{5})\.manifest\.json")


class SaveId(NamedTuple):
    """Tells a save from all others. `nonce`, below 2^63, is drawn anew by each attempt."""

    step: int
    attempt: int
    nonce: int

    @property
    def folder(self) -> str:
        return f"{step_name(self.step)}.attempt-{self.attempt}.{self.nonce:016x}"


@dataclass(frozen=True)
class LocalShard:
    """One shard of a save on this node's disk."""

    folder: PathFolder
    manifest: Manifest
    sidecar: Sidecar


class LocalTier:
    """A folder on the node's disk. `keep`: how many saves remain; `shards`: those that this node's ranks hold."""

    def __init__(self, root: Path, keep: int, shards: frozenset[int]) -> None:
        self.root = Path(root)
        self._keep = keep
        self._shards = shards

    def prepare(self) -> None:
        """Make the folder and finish removals. Raises CheckpointError, OSError."""
        make_root(self.root)
        clear_discarded(self.root)

    def write(
        self, save_id: SaveId, save: SaveAttempt, content: ShardContent, meta: CheckpointMeta, cancelled: Event
    ) -> LocalShard:
        """Write this shard, durably. A replica of it on the same node may have done so. Raises SaveRefusedError."""
        path = self.root / save_id.folder
        folder = PathFolder(path)
        aside = path / f".{save.file}.{uuid.uuid4().hex}"
        try:
            path.mkdir(exist_ok=True)
            if (path / manifest_file(save)).exists():
                return _open(folder, save.shard, save.shards)
            sidecar = content.sidecar(save, write_blocks(aside, content.source, content.block_bytes, cancelled))
            os.rename(aside, path / save.file)
            write_whole(path / save.sidecar, sidecar_text(sidecar))
            sync(path)
            manifest = build_manifest(save, meta, folder, [sidecar])
            folder.write(manifest_file(save), manifest_text(manifest))
            sync(self.root)
        except SAVE_ERRORS as error:
            aside.unlink(missing_ok=True)
            why = f"shard {save.shard} of {save.shards} in the local tier: {sentence(error)}"
            raise SaveRefusedError(why) from error
        return LocalShard(folder, manifest, sidecar)

    def saves(self) -> dict[SaveId, Shards]:
        """What can be read of each save on this node, newest first. Damaged shards are left out."""
        found = {}
        for save_id, path in self._paths():
            shards = _readable(PathFolder(path))
            if shards:
                sidecars = tuple(shard.sidecar for shard in shards)
                found[save_id] = Shards(shards[0].folder, shards[0].manifest.meta, sidecars)
        return found

    def proven(self, save_id: SaveId, shards: Shards) -> bool:
        """Whether each of these shards was read back after it was written."""
        names = set(os.listdir(self.root / save_id.folder))
        return all(mark_file(sidecar.shard, sidecar.shards) in names for sidecar in shards.sidecars)

    def shard(self, save_id: SaveId, shard: int, shards: int) -> LocalShard | None:
        """One shard of a save, or None when it isn't there or is damaged."""
        try:
            return _open(PathFolder(self.root / save_id.folder), shard, shards)
        except CheckpointError:
            return None

    def retain(self) -> list[SaveId]:
        """Remove all that is older than the newest `keep` saves of which this node's shards are all there; what went.

        Of those, the newest whose shards are all proven stays in any case. Raises OSError.
        """
        whole = [(save_id, path) for save_id, path in self._paths() if self._all_have(path, _manifest_name)]
        if len(whole) < self._keep:
            return []
        oldest = whole[self._keep - 1][0].step
        proven = next((path for _, path in whole if self._all_have(path, mark_file)), None)
        gone = [(save_id, path) for save_id, path in self._paths() if save_id.step < oldest and path != proven]
        return [save_id for save_id, path in gone if discard(path)]

    def set_aside(self, save_id: SaveId) -> None:
        """Remove a save that was found damaged: the durable tier is for keeping. Raises OSError."""
        discard(self.root / save_id.folder)

    def _paths(self) -> list[tuple[SaveId, Path]]:
        try:
            entries = list(self.root.iterdir())
        except FileNotFoundError:
            return []
        found = [(match, path) for path in entries if (match := _NAME.fullmatch(path.name))]
        named = [(SaveId(int(match[1]), int(match[2]), int(match[3], 16)), path) for match, path in found]
        return sorted(named, key=lambda item: item[0], reverse=True)

    def _all_have(self, path: Path, name_of: Callable[[int, int], str]) -> bool:
        names = set(os.listdir(path))
        counts = {int(match[2]) for name in names if (match := _MANIFESTS.fullmatch(name))}
        return any(all(name_of(shard, count) in names for shard in self._shards) for count in counts)


def manifest_file(save: SaveAttempt) -> str:
    return _manifest_name(save.shard, save.shards)


def _manifest_name(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.manifest.json"


def _open(folder: PathFolder, shard: int, shards: int) -> LocalShard:
    manifest = read_manifest(folder, _manifest_name(shard, shards))
    if manifest.shards != shards:
        raise CheckpointDamagedError(folder, f"the manifest of shard {shard} is of {manifest.shards} shards")
    sidecar = read_sidecar(folder, shard, manifest)
    check_size(folder, sidecar)
    return LocalShard(folder, manifest, sidecar)


def _readable(folder: PathFolder) -> list[LocalShard]:
    found = []
    for name in folder.names():
        match = _MANIFESTS.fullmatch(name)
        if match is None:
            continue
        try:
            found.append(_open(folder, int(match[1]), int(match[2])))
        except CheckpointError:
            continue
    return found
