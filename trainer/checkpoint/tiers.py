"""Durable tiers: where committed checkpoints are kept, seen by every node.

In a shared folder, shards gather in a hidden folder, which a single rename makes a checkpoint:

    ROOT/.step-00000100.attempt-3.tmp/   shard-00000-of-00002.safetensors   each shard's writer, then synced,
                                         shard-00000-of-00002.json          then its sidecar: this shard is whole
                                         shard-00001.failed                 or why it won't come
                                         manifest.json                      shard 0's writer, once all sidecars are in
    ROOT/step-00000100/                  the same folder, renamed

An object store has no rename: below URL/step-00000100.attempt-3/ the same files come in the same order, and a
checkpoint exists when its manifest does.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from trainer.checkpoint.attempt import (
    FAILED,
    SAVE_ERRORS,
    SaveAttempt,
    ShardContent,
    build_manifest,
    gather,
    manifest_text,
    sentence,
    sidecar_text,
)
from trainer.checkpoint.blocks import check_running, write_blocks
from trainer.checkpoint.digest import bytes_digest
from trainer.checkpoint.errors import SaveCancelledError, SaveRefusedError
from trainer.checkpoint.files import clear_discarded, discard, make_root, sync, write_whole
from trainer.checkpoint.folders import Folder, ObjectFolder, PathFolder, StorageErrors
from trainer.checkpoint.manifest import MANIFEST, CheckpointMeta, Manifest, Sidecar, step_name, step_of

_POLL_S = 0.02
_OBJECT_POLL_S = 0.5  # a listing is a request
_ASIDE = re.compile(r"\.step-(\d{8,})\.attempt-(\d+)\.tmp")
_DAMAGED = "damaged.json"  # in an object store: beside a manifest that is passed over from now on


class Tier(Protocol):
    """One durable place for checkpoints. Everything may raise OSError."""

    def folders(self) -> list[Folder]:
        """Of committed checkpoints, newest first."""

    def open(self, name: str) -> Folder:
        """The folder of that name, committed or not."""

    def committed(self, step: int) -> Folder | None: ...

    def prepare(self) -> None:
        """Make the place."""

    def clear(self, attempt: int, before_step: int | None = None) -> None:
        """Remove what attempts up to this one left unfinished, or only what is of earlier steps. Late writers fail."""

    def put(self, save: SaveAttempt, content: ShardContent, cancelled: Event) -> Sidecar:
        """Write this shard and its sidecar, durably. Raises SaveRefusedError, after leaving word for the others."""

    def refuse(self, save: SaveAttempt, error: Exception) -> str:
        """Leave word for the other writers that this shard won't come; the sentence that says why."""

    def commit(
        self, save: SaveAttempt, meta: CheckpointMeta, cancelled: Event, timeout_s: float
    ) -> tuple[Folder, Manifest]:
        """Wait for all shards, then make the checkpoint visible. For shard 0's writer.

        Raises SaveRefusedError: another shard failed or did not come in time, cancelled, or the storage refused. No
        other checkpoint is touched.
        """

    def gathering(self, save: SaveAttempt) -> bool:
        """Whether this save may still be committed: something of it is there, and no word that a shard won't come."""

    def remove(self, folder: Folder) -> bool:
        """False when it is gone already."""

    def set_aside(self, folder: Folder) -> None:
        """Take a damaged checkpoint out of the list, keeping its bytes, so that its step can be saved again."""


class PathTier:
    """A folder at the same path on every node."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def folders(self) -> list[Folder]:
        try:
            entries = [path for path in self.root.iterdir() if step_of(path) is not None]
        except FileNotFoundError:
            return []
        return [PathFolder(path) for path in sorted(entries, key=lambda path: -(step_of(path) or 0))]

    def open(self, name: str) -> Folder:
        return PathFolder(self.root / name)

    def committed(self, step: int) -> Folder | None:
        path = self.root / step_name(step)
        return PathFolder(path) if path.exists() else None

    def prepare(self) -> None:
        make_root(self.root)

    def clear(self, attempt: int, before_step: int | None = None) -> None:
        clear_discarded(self.root)
        for path in self.root.iterdir():
            found = _ASIDE.fullmatch(path.name)
            if found and int(found[2]) <= attempt and (before_step is None or int(found[1]) < before_step):
                discard(path)

    def put(self, save: SaveAttempt, content: ShardContent, cancelled: Event) -> Sidecar:
        aside = self.root / save.aside_name
        try:
            check_running(cancelled)
            aside.mkdir(exist_ok=True)
            blocks = write_blocks(aside / save.file, content.source, content.block_bytes, cancelled)
            sidecar = content.sidecar(save, blocks)
            write_whole(aside / save.sidecar, sidecar_text(sidecar))
            sync(aside)
            check_running(cancelled)
        except SAVE_ERRORS as error:
            raise SaveRefusedError(self.refuse(save, error)) from error
        return sidecar

    def refuse(self, save: SaveAttempt, error: Exception) -> str:
        """Frees the space. On a disk too full even for a word, shard 0's deadline has to do."""
        aside = self.root / save.aside_name
        why = f"shard {save.shard} of {save.shards}: {sentence(error)}"
        with contextlib.suppress(OSError):
            if save.shard == 0:
                discard(aside)
            else:
                (aside / save.file).unlink(missing_ok=True)
            if save.shards > 1 and not isinstance(error, SaveCancelledError):
                aside.mkdir(exist_ok=True)
                write_whole(aside / save.failed, why.encode())
        return why

    def commit(
        self, save: SaveAttempt, meta: CheckpointMeta, cancelled: Event, timeout_s: float
    ) -> tuple[Folder, Manifest]:
        aside, final = self.root / save.aside_name, self.root / step_name(save.step)
        try:
            folder = PathFolder(aside)
            sidecars = gather(save, folder, cancelled, timeout_s, _POLL_S, lambda: self._check_first(final))
            manifest = build_manifest(save, meta, folder, sidecars)
            write_whole(aside / MANIFEST, manifest_text(manifest))
            sync(aside)
            check_running(cancelled)
            os.rename(aside, final)
            sync(self.root)
        except SAVE_ERRORS as error:
            discard(aside)
            raise SaveRefusedError(sentence(error)) from error
        return PathFolder(final), manifest

    def gathering(self, save: SaveAttempt) -> bool:
        try:
            return not any(name.endswith(FAILED) for name in os.listdir(self.root / save.aside_name))
        except FileNotFoundError:
            return False

    def remove(self, folder: Folder) -> bool:
        return discard(self.root / folder.name)

    def set_aside(self, folder: Folder) -> None:
        for number in range(1000):
            aside = self.root / f".damaged-{folder.name}-{number}"
            if not aside.exists():
                os.rename(self.root / folder.name, aside)
                sync(self.root)
                return
        raise FileExistsError(f"{folder} was set aside a thousand times; the storage needs a look")

    @staticmethod
    def _check_first(final: Path) -> None:
        if final.exists():
            raise SaveRefusedError("another attempt has committed this step meanwhile")


class ObjectTier:
    """A prefix of an fsspec file system."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self.filesystem = filesystem
        self.prefix = prefix.rstrip("/")

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.prefix))

    def folders(self) -> list[Folder]:
        found = [folder for folder in self._all() if self._visible(folder)]
        return sorted(found, key=lambda folder: (-(step_of(folder) or 0), folder.name))

    def open(self, name: str) -> Folder:
        return ObjectFolder(self.filesystem, f"{self.prefix}/{name}")

    def committed(self, step: int) -> Folder | None:
        return next((folder for folder in self._all() if step_of(folder) == step and self._visible(folder)), None)

    def prepare(self) -> None:
        with StorageErrors():
            self.filesystem.makedirs(self.prefix, exist_ok=True)

    def clear(self, attempt: int, before_step: int | None = None) -> None:
        for folder in self._all():
            of_attempt = int(folder.name.rpartition("-")[2]) <= attempt
            early = before_step is None or (step_of(folder) or 0) < before_step
            if of_attempt and early and MANIFEST not in folder.names():
                self.remove(folder)

    def put(self, save: SaveAttempt, content: ShardContent, cancelled: Event) -> Sidecar:
        folder = self._of(save)
        try:
            blocks = self._upload(f"{self.prefix}/{folder.name}/{save.file}", content, cancelled)
            sidecar = content.sidecar(save, blocks)
            if folder.stat(save.file).bytes != sidecar.bytes:
                raise SaveRefusedError(f"{save.file} did not arrive whole")
            folder.write(save.sidecar, sidecar_text(sidecar))
        except SAVE_ERRORS as error:
            raise SaveRefusedError(self.refuse(save, error)) from error
        return sidecar

    def refuse(self, save: SaveAttempt, error: Exception) -> str:
        """When even a word can't be left, shard 0's deadline has to do."""
        why = f"shard {save.shard} of {save.shards}: {sentence(error)}"
        with contextlib.suppress(OSError):
            self._of(save).write(save.failed, why.encode())
        return why

    def commit(
        self, save: SaveAttempt, meta: CheckpointMeta, cancelled: Event, timeout_s: float
    ) -> tuple[Folder, Manifest]:
        folder = self._of(save)
        try:
            sidecars = gather(save, folder, cancelled, timeout_s, _OBJECT_POLL_S, lambda: None)
            manifest = build_manifest(save, meta, folder, sidecars)
            check_running(cancelled)
            folder.write(MANIFEST, manifest_text(manifest))
        except SAVE_ERRORS as error:
            self._drop(folder)
            raise SaveRefusedError(sentence(error)) from error
        return folder, manifest

    def gathering(self, save: SaveAttempt) -> bool:
        try:
            names = self._of(save).names()
        except FileNotFoundError:
            return False
        return bool(names) and MANIFEST not in names and not any(name.endswith(FAILED) for name in names)

    def remove(self, folder: Folder) -> bool:
        """The manifest first, so that nobody takes half of it for a checkpoint."""
        try:
            names = folder.names()
        except FileNotFoundError:
            return False
        with StorageErrors():
            for name in sorted(names, key=lambda name: name != MANIFEST):
                self.filesystem.rm_file(f"{self.prefix}/{folder.name}/{name}")
            if self.filesystem.exists(f"{self.prefix}/{folder.name}"):  # some file systems keep an empty folder
                self.filesystem.rm(f"{self.prefix}/{folder.name}", recursive=True)
        return True

    def set_aside(self, folder: Folder) -> None:
        folder.write(_DAMAGED, b"{}")

    def _of(self, save: SaveAttempt) -> Folder:
        return self.open(f"{step_name(save.step)}.attempt-{save.attempt}")

    def _all(self) -> list[Folder]:
        with StorageErrors():
            self.filesystem.invalidate_cache(self.prefix)
            try:
                found = self.filesystem.ls(self.prefix, detail=False)
            except FileNotFoundError:
                return []
        folders = [self.open(path.rstrip("/").rpartition("/")[2]) for path in found]
        return [folder for folder in folders if step_of(folder) is not None]

    def _visible(self, folder: Folder) -> bool:
        names = folder.names()
        return MANIFEST in names and _DAMAGED not in names

    def _upload(self, key: str, content: ShardContent, cancelled: Event) -> list[str]:
        digests = []
        with StorageErrors():
            self.filesystem.makedirs(key.rpartition("/")[0], exist_ok=True)
            with self.filesystem.open(key, "wb") as file:
                for begin in range(0, content.source.size, content.block_bytes):
                    check_running(cancelled)
                    block = content.source.block(begin, content.block_bytes)
                    file.write(block)
                    digests.append(bytes_digest(block))
        return digests

    def _drop(self, folder: Folder) -> None:
        with contextlib.suppress(OSError):  # it has no manifest, and the next attempt clears it
            self.remove(folder)


def open_tier(place: str | Path) -> Tier:
    """The tier at a path or URL. Raises StorageError for a URL that can't be used here."""
    from trainer.checkpoint.urls import open_url

    opened = open_url(place) if isinstance(place, str) and "://" in place else Path(place)
    return PathTier(opened) if isinstance(opened, Path) else ObjectTier(*opened)
