"""Proof that a checkpoint is what was written, and the marks by which it is known before it is needed.

After the commit each shard's writer reads its own file back from the medium and leaves a mark, shard-*.proven.json. The
mark holds only for this manifest and for a file of the same size and modification time.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from trainer.checkpoint.blocks import prove_blocks
from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.folders import AnyFolder, Folder, as_folder
from trainer.checkpoint.manifest import Manifest, Sidecar, read_manifest, read_sidecar, shard_file, step_of
from trainer.checkpoint.slices import Slice, parts, rows


def prove(path: AnyFolder) -> Manifest:
    """Check every byte: the manifest's own digest, size and digest of each file, and that shards cover each tensor.

    Reads the whole checkpoint. Raises CheckpointDamagedError with the first flaw found.
    """
    folder = as_folder(path)
    manifest = read_manifest(folder)
    if manifest.step != step_of(folder):
        raise CheckpointDamagedError(path, f"the manifest is of step {manifest.step}")
    sidecars = [read_sidecar(folder, shard, manifest) for shard in range(manifest.shards)]
    for sidecar in sidecars:
        prove_blocks(folder, sidecar)
    _prove_cover(folder, sidecars)
    return manifest


def prove_shard(folder: Folder, manifest: Manifest, sidecar: Sidecar, check: Callable[[], object]) -> None:
    """Read one shard back and mark it as proven. `check` may raise to end it early.

    Raises CheckpointDamagedError, OSError.
    """
    prove_blocks(folder, sidecar, check, threads=1)
    found = folder.stat(sidecar.file)
    mark = {
        "manifest": manifest.digest,
        "file": sidecar.file,
        "tree_sha256": sidecar.digest,
        "bytes": found.bytes,
        "mtime_ns": found.mtime_ns,
    }
    folder.write(mark_file(sidecar.shard, sidecar.shards), json.dumps(mark).encode())


def is_proven(folder: Folder, manifest: Manifest) -> bool:
    """Whether each shard has a mark that holds. Reads no shard."""
    try:
        return all(_mark_holds(folder, manifest, shard) for shard in range(manifest.shards))
    except (OSError, KeyError, TypeError, ValueError):
        return False


def mark_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.proven.json"


def _mark_holds(folder: Folder, manifest: Manifest, shard: int) -> bool:
    mark = json.loads(folder.read(mark_file(shard, manifest.shards)))
    file = shard_file(shard, manifest.shards)
    found = folder.stat(file)
    said = (mark["manifest"], mark["file"], mark["tree_sha256"], mark["bytes"], mark["mtime_ns"])
    true = (manifest.digest, file, manifest.files[file]["tree_sha256"], found.bytes, found.mtime_ns)
    return said == true and found.bytes == manifest.files[file]["bytes"]


def _prove_cover(folder: Folder, sidecars: list[Sidecar]) -> None:
    names = {name for sidecar in sidecars for name in sidecar.tensors}
    for name in sorted(names):
        pieces = [sidecar.tensors[name] for sidecar in sidecars if name in sidecar.tensors]
        shape = pieces[0].shape
        if len({(piece.shape, piece.dtype) for piece in pieces}) > 1:
            raise CheckpointDamagedError(folder, f"{name} has different shapes in different shards")
        try:
            parts(Slice(0, rows(shape)), [Slice(piece.offset, piece.length) for piece in pieces])
        except ValueError as error:
            raise CheckpointDamagedError(folder, f"{name}: {error}") from error
