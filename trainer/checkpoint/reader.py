"""Finds, proves and reads checkpoints, for any mesh. Holds no code: safetensors and JSON only, never a pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from trainer.checkpoint.digest import file_digest
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointMismatchError
from trainer.checkpoint.manifest import (
    Manifest,
    Sidecar,
    StoredTensor,
    read_manifest,
    read_sidecar,
    shard_file,
    sidecar_file,
    step_of,
)
from trainer.checkpoint.slices import Slice, parts, rows

_PROVE_THREADS = 8  # hashing releases the interpreter lock; more rarely helps one file system


class NewestProven(NamedTuple):
    """`path` and `manifest` are None when none proves. `rejected`: newer ones that were passed over, and why."""

    path: Path | None
    manifest: Manifest | None
    rejected: list[tuple[Path, str]]


def find(root: Path) -> list[Path]:
    """Folders of committed checkpoints, newest step first; none when `root` doesn't exist."""
    try:
        entries = list(Path(root).iterdir())
    except FileNotFoundError:
        return []
    return sorted((path for path in entries if step_of(path) is not None), key=lambda path: -(step_of(path) or 0))


def prove(path: Path) -> Manifest:
    """Check every byte: the manifest's own digest, size and SHA-256 of each file, and that shards cover each tensor.

    Reads the whole checkpoint: one rank should do it for all. Raises CheckpointDamagedError with the first flaw found.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.step != step_of(path):
        raise CheckpointDamagedError(path, f"the manifest is of step {manifest.step}")
    for shard in range(manifest.shards):
        for name in (shard_file(shard, manifest.shards), sidecar_file(shard, manifest.shards)):
            if name not in manifest.files:
                raise CheckpointDamagedError(path, f"the manifest doesn't know {name}")
    with ThreadPoolExecutor(min(_PROVE_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda item: _prove_file(path, *item), sorted(manifest.files.items())))
    _prove_cover(path, _sidecars(path, manifest.shards))
    return manifest


def newest_proven(root: Path) -> NewestProven:
    """The newest checkpoint that proves; damaged ones are passed over, each with its reason."""
    rejected: list[tuple[Path, str]] = []
    for path in find(root):
        try:
            return NewestProven(path, prove(path), rejected)
        except CheckpointDamagedError as error:
            rejected.append((path, error.why))
    return NewestProven(None, None, rejected)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Global shape and dtype of each stored tensor, as a piece that is the whole. Raises CheckpointDamagedError."""
    path = Path(path)
    whole = {}
    for name, pieces in _pieces(_sidecars(path, read_manifest(path).shards)).items():
        shape, dtype = pieces[0].tensor.shape, pieces[0].tensor.dtype
        whole[name] = StoredTensor(shape, dtype, 0, rows(shape))
    return whole


def load(
    path: Path, wanted: Mapping[str, Slice | None], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, torch.Tensor]:
    """CPU tensors with the wanted rows of dimension 0 of each named tensor (None: all), in their stored dtype.

    The stored mesh doesn't matter: a slice is put together from the shards that hold its rows, and no other is read.
    `shapes`: global shapes that the stored ones must equal. Raises CheckpointMismatchError for an unknown name, another
    shape or rows beyond the tensor, CheckpointDamagedError for files that can't be read. Digests are `prove`'s task.
    """
    path = Path(path)
    stored = _pieces(_sidecars(path, read_manifest(path).shards))
    for name in wanted:
        if name not in stored:
            raise CheckpointMismatchError(f"{path} holds no tensor {name}")
        shape = stored[name][0].tensor.shape
        if shapes is not None and tuple(shapes[name]) != shape:
            raise CheckpointMismatchError(f"{path}: {name} has shape {list(shape)}, the model {list(shapes[name])}")
    with _ShardFiles(path) as files:
        return {name: _assemble(files, name, stored[name], piece) for name, piece in wanted.items()}


class _Piece(NamedTuple):
    file: str
    tensor: StoredTensor

    @property
    def rows(self) -> Slice:
        return Slice(self.tensor.offset, self.tensor.length)


def _pieces(sidecars: list[Sidecar]) -> dict[str, list[_Piece]]:
    pieces: dict[str, list[_Piece]] = {}
    for sidecar in sidecars:
        for name, tensor in sidecar.tensors.items():
            pieces.setdefault(name, []).append(_Piece(sidecar.file, tensor))
    return pieces


class _ShardFiles:
    """Shard files opened once each, on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, safe_open] = {}

    def __enter__(self) -> _ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)

    def read(self, file: str, name: str, part: Slice, has_rows: bool) -> torch.Tensor:
        try:
            if file not in self._open:
                self._open[file] = safe_open(self.path / file, framework="pt").__enter__()
            if not has_rows:
                return self._open[file].get_tensor(name).reshape(1)
            return self._open[file].get_slice(name)[part.offset : part.end]
        except (OSError, SafetensorError) as error:
            raise CheckpointDamagedError(self.path, f"{file}: {error}") from error


def _assemble(files: _ShardFiles, name: str, pieces: list[_Piece], wanted: Slice | None) -> torch.Tensor:
    shape, dtype = pieces[0].tensor.shape, getattr(torch, pieces[0].tensor.dtype)
    wanted = Slice(0, rows(shape)) if wanted is None else wanted
    if wanted.length == 0:
        return torch.empty((0, *shape[1:]), dtype=dtype)
    if wanted.offset < 0 or wanted.end > rows(shape):
        raise CheckpointMismatchError(
            f"{files.path}: {name} has shape {list(shape)}, rows {wanted.offset} to {wanted.end} are asked for"
        )
    holders = {piece.rows: piece.file for piece in pieces}
    try:
        found = [files.read(holders[stored], name, part, bool(shape)) for part, stored in parts(wanted, holders)]
    except ValueError as error:
        raise CheckpointDamagedError(files.path, f"{name}: {error}") from error
    return torch.cat(found).reshape((wanted.length, *shape[1:]) if shape else ())


def _sidecars(path: Path, shards: int) -> list[Sidecar]:
    return [read_sidecar(path, shard, shards) for shard in range(shards)]


def _prove_file(path: Path, name: str, said: dict) -> None:
    try:
        size = (path / name).stat().st_size
        if size != said["bytes"]:
            raise CheckpointDamagedError(path, f"{name} has {size} bytes instead of {said['bytes']}")
        if file_digest(path / name) != said["sha256"]:
            raise CheckpointDamagedError(path, f"{name} has another digest than when it was written")
    except OSError as error:
        raise CheckpointDamagedError(path, f"{name} can't be read: {error.strerror}") from error


def _prove_cover(path: Path, sidecars: list[Sidecar]) -> None:
    for name, pieces in _pieces(sidecars).items():
        shape = pieces[0].tensor.shape
        if len({(piece.tensor.shape, piece.tensor.dtype) for piece in pieces}) > 1:
            raise CheckpointDamagedError(path, f"{name} has different shapes in different shards")
        try:
            parts(Slice(0, rows(shape)), [piece.rows for piece in pieces])
        except ValueError as error:
            raise CheckpointDamagedError(path, f"{name}: {error}") from error
