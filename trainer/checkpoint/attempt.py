"""One save of one step in one attempt: shards gather in a hidden folder, which a single rename makes a checkpoint.

Ranks meet by files alone. A collective would hang in the background thread when a rank dies, just when the others must
leave; a file that never comes is waited for with a deadline and a cancel flag.

    ROOT/.step-00000100.attempt-3.tmp/   shard-00000-of-00002.safetensors   each shard's writer, then synced,
                                         shard-00000-of-00002.json          then its sidecar: this shard is whole
                                         shard-00001.failed                 or why it won't come
                                         manifest.json                      shard 0's writer, once all sidecars are in
    ROOT/step-00000100/                  the same folder, renamed
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import torch
from safetensors.torch import save_file

from trainer.checkpoint.digest import file_digest
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.files import clear_discarded, discard, sync, write_whole
from trainer.checkpoint.manifest import (
    MANIFEST,
    CheckpointMeta,
    Manifest,
    Sidecar,
    StoredTensor,
    read_sidecar,
    shard_file,
    sidecar_file,
    step_name,
)

_POLL_S = 0.02
_ASIDE = re.compile(r"\.step-(\d{8,})\.attempt-(\d+)\.tmp")


@dataclass(frozen=True)
class ShardTensor:
    """This shard's piece of a tensor: `local` holds rows [offset, offset + len(local)) of one of shape `global_shape`.

    Empty pieces are allowed (FSDP2 makes them). A tensor without dimensions is held by one shard, at offset 0.
    """

    local: torch.Tensor
    global_shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class SaveAttempt:
    """Who saves what: shard `shard` of `shards`, of step `step`, in attempt `attempt`, under `root`."""

    root: Path
    step: int
    attempt: int
    shard: int
    shards: int

    @property
    def aside(self) -> Path:
        return self.root / f".{step_name(self.step)}.attempt-{self.attempt}.tmp"

    @property
    def final(self) -> Path:
        return self.root / step_name(self.step)


class SaveRefusedError(CheckpointError):
    """This save can't or must not be committed."""


def write_shard(save: SaveAttempt, tensors: Mapping[str, ShardTensor], cancelled: Event) -> None:
    """Write and sync this shard and its sidecar. `tensors` hold CPU copies that nobody changes meanwhile.

    Raises SaveRefusedError (not finite, cancelled, disk full), after leaving word of it for shard 0's writer.
    """
    try:
        _check_running(cancelled)
        save.aside.mkdir(exist_ok=True)
        _check_finite(tensors)
        _write_shard(save, tensors)
        _check_running(cancelled)
    except Exception as error:
        why = f"shard {save.shard} of {save.shards}: {_sentence(error)}"
        _give_up(save, why)
        raise SaveRefusedError(why) from error


def commit(save: SaveAttempt, meta: CheckpointMeta, cancelled: Event, timeout_s: float) -> Manifest:
    """Wait for all shards, write the manifest, make the checkpoint visible. For shard 0's writer.

    Raises SaveRefusedError: another shard failed or did not come in time, cancelled, or the disk refused. Nothing
    is left behind then, and no other checkpoint is touched.
    """
    try:
        sidecars = _gather(save, cancelled, time.monotonic() + timeout_s)
        manifest = _manifest(save, meta, sidecars)
        text = json.dumps(manifest.to_json(), indent=1, allow_nan=False)
        write_whole(save.aside / MANIFEST, text.encode())
        sync(save.aside)
        _check_running(cancelled)
        os.rename(save.aside, save.final)
        sync(save.root)
    except (OSError, ValueError, TypeError, CheckpointError) as error:
        discard(save.aside)
        raise SaveRefusedError(_sentence(error)) from error
    return manifest


def clear_unfinished(root: Path, attempt: int, but_step: int = -1) -> None:
    """Remove what attempts up to this one left unfinished, other than of step `but_step`.

    Late writers of theirs fail, as their folder is gone. Raises OSError.
    """
    clear_discarded(root)
    for path in root.iterdir():
        found = _ASIDE.fullmatch(path.name)
        if found and int(found.group(1)) != but_step and int(found.group(2)) <= attempt:
            discard(path)


def _write_shard(save: SaveAttempt, tensors: Mapping[str, ShardTensor]) -> None:
    path = save.aside / shard_file(save.shard, save.shards)
    save_file({name: piece.local for name, piece in tensors.items()}, path)
    sync(path)
    sidecar = Sidecar(
        step=save.step,
        attempt=save.attempt,
        shard=save.shard,
        shards=save.shards,
        file=path.name,
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        tensors={name: _stored(piece) for name, piece in tensors.items()},
    )
    write_whole(save.aside / sidecar_file(save.shard, save.shards), json.dumps(sidecar.to_json()).encode())
    sync(save.aside)


def _stored(piece: ShardTensor) -> StoredTensor:
    dtype = str(piece.local.dtype).removeprefix("torch.")
    length = len(piece.local) if piece.global_shape else 1
    return StoredTensor(tuple(piece.global_shape), dtype, piece.offset, length)


def _check_finite(tensors: Mapping[str, ShardTensor]) -> None:
    for name, piece in tensors.items():
        if piece.local.is_floating_point() and not bool(torch.isfinite(piece.local).all()):
            raise SaveRefusedError(f"{name} is not finite; such a state is never committed")


def _check_running(cancelled: Event) -> None:
    if cancelled.is_set():
        raise SaveRefusedError("cancelled")


def _give_up(save: SaveAttempt, why: str) -> None:
    """Free the space, and tell shard 0's writer. On a disk too full even for that, its deadline has to do."""
    try:
        if save.shard == 0:
            discard(save.aside)
            return
        (save.aside / shard_file(save.shard, save.shards)).unlink(missing_ok=True)
        write_whole(save.aside / _failed_file(save.shard), why.encode())
    except OSError:
        return


def _failed_file(shard: int) -> str:
    return f"shard-{shard:05d}.failed"


def _gather(save: SaveAttempt, cancelled: Event, deadline: float) -> list[Sidecar]:
    expected = {sidecar_file(shard, save.shards) for shard in range(save.shards)}
    while True:
        if save.final.exists():
            raise SaveRefusedError("another attempt has committed this step meanwhile")
        names = set(os.listdir(save.aside))
        for shard in range(save.shards):
            if _failed_file(shard) in names:
                raise SaveRefusedError((save.aside / _failed_file(shard)).read_text())
        if expected <= names:
            return [_checked_sidecar(save, shard) for shard in range(save.shards)]
        if time.monotonic() > deadline:
            missing = sorted(expected - names)
            raise SaveRefusedError(f"{len(missing)} of {save.shards} shards did not come in time, {missing[0]} first")
        cancelled.wait(_POLL_S)
        _check_running(cancelled)


def _checked_sidecar(save: SaveAttempt, shard: int) -> Sidecar:
    sidecar = read_sidecar(save.aside, shard, save.shards)
    said = (sidecar.step, sidecar.attempt, sidecar.shard, sidecar.shards)
    if said != (save.step, save.attempt, shard, save.shards):
        raise SaveRefusedError(f"{sidecar_file(shard, save.shards)} belongs to another save")
    if (save.aside / sidecar.file).stat().st_size != sidecar.bytes:
        raise SaveRefusedError(f"{sidecar.file} hasn't the size its writer said")
    return sidecar


def _manifest(save: SaveAttempt, meta: CheckpointMeta, sidecars: list[Sidecar]) -> Manifest:
    files = {}
    for sidecar in sidecars:
        own = save.aside / sidecar_file(sidecar.shard, save.shards)
        files[sidecar.file] = {"bytes": sidecar.bytes, "sha256": sidecar.sha256}
        files[own.name] = {"bytes": own.stat().st_size, "sha256": file_digest(own)}
    # Through JSON, so that the digest is of what a reader will see.
    plain = CheckpointMeta(**json.loads(json.dumps(asdict(meta), allow_nan=False)))
    return Manifest(save.step, save.attempt, save.shards, plain, str(torch.__version__), files)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
