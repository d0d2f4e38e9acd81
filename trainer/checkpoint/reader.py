"""Finds and reads checkpoints, for any mesh. Holds no code: safetensors and JSON only, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.checkpoint.blocks import Target, check_size, read_targets
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointMismatchError
from trainer.checkpoint.folders import AnyFolder, Folder, PathFolder, as_folder
from trainer.checkpoint.image import as_bytes
from trainer.checkpoint.manifest import (
    CheckpointMeta,
    Sidecar,
    StoredTensor,
    read_manifest,
    read_sidecar,
)
from trainer.checkpoint.slices import Slice, parts, rows
from trainer.checkpoint.tiers import PathTier


@dataclass(frozen=True)
class Shards:
    """Those shards of a checkpoint that can be read from here."""

    folder: Folder
    meta: CheckpointMeta
    sidecars: tuple[Sidecar, ...]

    def covers(self, wanted: Mapping[str, Slice | None]) -> bool:
        """Whether all that is wanted is in these shards."""
        pieces = self._pieces()
        try:
            for name, rows_wanted in wanted.items():
                shape = pieces[name][0].tensor.shape
                parts(Slice(0, rows(shape)) if rows_wanted is None else rows_wanted, [p.rows for p in pieces[name]])
        except (KeyError, ValueError):
            return False
        return True

    def tensors(self) -> dict[str, StoredTensor]:
        """Global shape and dtype of each stored tensor, as a piece that is the whole."""
        firsts = {name: pieces[0].tensor for name, pieces in self._pieces().items()}
        return {name: StoredTensor(first.shape, first.dtype, 0, rows(first.shape)) for name, first in firsts.items()}

    def read(
        self, wanted: Mapping[str, Slice | None], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, torch.Tensor]:
        """As `load`."""
        stored = self._pieces()
        found: dict[str, torch.Tensor] = {}
        targets: dict[str, list[Target]] = {}
        for name, piece in wanted.items():
            if name not in stored:
                raise CheckpointMismatchError(f"{self.folder} holds no tensor {name}")
            shape = stored[name][0].tensor.shape
            if shapes is not None and tuple(shapes[name]) != shape:
                raise CheckpointMismatchError(
                    f"{self.folder}: {name} has shape {list(shape)}, the model {list(shapes[name])}"
                )
            found[name] = self._plan(name, stored[name], Slice(0, rows(shape)) if piece is None else piece, targets)
        by_file = {sidecar.file: sidecar for sidecar in self.sidecars}
        for file in targets:
            check_size(self.folder, by_file[file])
        for file, of_file in targets.items():
            read_targets(self.folder, by_file[file], of_file)
        return found

    def _pieces(self) -> dict[str, list[_Piece]]:
        pieces: dict[str, list[_Piece]] = {}
        for sidecar in self.sidecars:
            for name, tensor in sidecar.tensors.items():
                pieces.setdefault(name, []).append(_Piece(sidecar.file, tensor))
        return pieces

    def _plan(
        self, name: str, pieces: Sequence[_Piece], wanted: Slice, targets: dict[str, list[Target]]
    ) -> torch.Tensor:
        """A new tensor for these rows; what has to be read into it is added to `targets`."""
        shape, dtype = pieces[0].tensor.shape, getattr(torch, pieces[0].tensor.dtype)
        if wanted.length and (wanted.offset < 0 or wanted.end > rows(shape)):
            raise CheckpointMismatchError(
                f"{self.folder}: {name} has shape {list(shape)}, rows {wanted.offset} to {wanted.end} are asked for"
            )
        tensor = torch.empty((wanted.length, *shape[1:]) if shape else (), dtype=dtype)
        if tensor.numel() == 0:
            return tensor
        memory = memoryview(as_bytes(tensor).numpy())
        row_bytes = tensor.nbytes // wanted.length
        holders = {piece.rows: piece for piece in pieces}
        try:
            found, at = parts(wanted, holders), 0
        except ValueError as error:
            raise CheckpointDamagedError(self.folder, f"{name}: {error}") from error
        for part, stored in found:
            size = part.length * row_bytes
            holder = holders[stored]
            target = Target(holder.tensor.begin + part.offset * row_bytes, memory[at : at + size])
            targets.setdefault(holder.file, []).append(target)
            at += size
        return tensor


class _Piece(NamedTuple):
    file: str
    tensor: StoredTensor

    @property
    def rows(self) -> Slice:
        return Slice(self.tensor.offset, self.tensor.length)


def find(root: Path) -> list[Path]:
    """Folders of committed checkpoints, newest step first; none when `root` doesn't exist."""
    return [folder.path for folder in PathTier(root).folders() if isinstance(folder, PathFolder)]


def open_shards(path: AnyFolder) -> Shards:
    """All shards of a committed checkpoint. Raises CheckpointDamagedError, CheckpointFormatError."""
    folder = as_folder(path)
    manifest = read_manifest(folder)
    sidecars = tuple(read_sidecar(folder, shard, manifest) for shard in range(manifest.shards))
    return Shards(folder, manifest.meta, sidecars)


def load(
    path: AnyFolder, wanted: Mapping[str, Slice | None], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, torch.Tensor]:
    """CPU tensors with the wanted rows of dimension 0 of each named tensor (None: all), in their stored dtype.

    The stored mesh doesn't matter: a slice is put together from the shards that hold its rows, and no other is read.
    Every byte that is taken is checked against its digest on the way. `shapes`: global shapes that the stored ones must
    equal. Raises CheckpointMismatchError for an unknown name, another shape or rows beyond the tensor,
    CheckpointDamagedError for files that can't be read or aren't what was written.
    """
    return open_shards(path).read(wanted, shapes)
