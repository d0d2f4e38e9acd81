"""One save of one step in one attempt, as a durable tier commits it: by all shards or not at all.

Ranks meet by files alone. A collective would hang in the background thread when a rank dies, just when the others must
leave; a file that never comes is waited for with a deadline and a cancel flag.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Event

import torch

from trainer.checkpoint.blocks import Source, check_running
from trainer.checkpoint.digest import BLOCK_BYTES, bytes_digest
from trainer.checkpoint.errors import CheckpointError, SaveRefusedError
from trainer.checkpoint.folders import Folder
from trainer.checkpoint.manifest import (
    CheckpointMeta,
    Manifest,
    Sidecar,
    StoredTensor,
    parse_sidecar,
    shard_file,
    sidecar_file,
    step_name,
)

FAILED = ".failed"


@dataclass(frozen=True)
class SaveAttempt:
    """Who saves what: shard `shard` of `shards`, of step `step`, in attempt `attempt`."""

    step: int
    attempt: int
    shard: int
    shards: int

    @property
    def file(self) -> str:
        return shard_file(self.shard, self.shards)

    @property
    def sidecar(self) -> str:
        return sidecar_file(self.shard, self.shards)

    @property
    def failed(self) -> str:
        """The file by which a writer says that its shard won't come."""
        return failed_file(self.shard)

    @property
    def aside_name(self) -> str:
        return f".{step_name(self.step)}.attempt-{self.attempt}.tmp"


@dataclass(frozen=True)
class ShardContent:
    """What is saved of a shard: its file's bytes, what they mean, and their digests where they are known already."""

    source: Source
    tensors: dict[str, StoredTensor]
    blocks: tuple[str, ...] | None = None
    block_bytes: int = BLOCK_BYTES

    def sidecar(self, save: SaveAttempt, blocks: list[str]) -> Sidecar:
        """For a file of these digests. Raises SaveRefusedError when they aren't the known ones."""
        if self.blocks is not None and tuple(blocks) != self.blocks:
            raise SaveRefusedError(f"{save.file} in the local tier is not what was written there")
        return Sidecar(
            step=save.step,
            attempt=save.attempt,
            shard=save.shard,
            shards=save.shards,
            file=save.file,
            bytes=self.source.size,
            block_bytes=self.block_bytes,
            blocks=tuple(blocks),
            tensors=self.tensors,
        )


def failed_file(shard: int) -> str:
    return f"shard-{shard:05d}{FAILED}"


def gather(
    save: SaveAttempt, folder: Folder, cancelled: Event, timeout_s: float, poll_s: float, check: Callable[[], object]
) -> list[Sidecar]:
    """Wait for the sidecars of all shards; `check` may raise to end the wait.

    Raises SaveRefusedError: another shard failed, did not come in time, or is of another save; cancelled. OSError.
    """
    deadline = time.monotonic() + timeout_s
    expected = {sidecar_file(shard, save.shards) for shard in range(save.shards)}
    while True:
        check()
        names = set(folder.names())
        for shard in range(save.shards):
            if failed_file(shard) in names:
                raise SaveRefusedError(folder.read(failed_file(shard)).decode(errors="replace"))
        if expected <= names:
            return [_checked_sidecar(save, folder, shard) for shard in range(save.shards)]
        if time.monotonic() > deadline:
            missing = sorted(expected - names)
            raise SaveRefusedError(f"{len(missing)} of {save.shards} shards did not come in time, {missing[0]} first")
        cancelled.wait(poll_s)
        check_running(cancelled)


def build_manifest(save: SaveAttempt, meta: CheckpointMeta, folder: Folder, sidecars: list[Sidecar]) -> Manifest:
    """The manifest over these shards. Raises ValueError or TypeError for a meta that JSON can't hold."""
    files = {}
    for sidecar in sidecars:
        own = sidecar_file(sidecar.shard, save.shards)
        content = folder.read(own)
        files[sidecar.file] = {"bytes": sidecar.bytes, "tree_sha256": sidecar.digest}
        files[own] = {"bytes": len(content), "sha256": bytes_digest(content)}
    # Through JSON, so that the digest is of what a reader will see.
    plain = CheckpointMeta(**json.loads(json.dumps(asdict(meta), allow_nan=False)))
    return Manifest(save.step, save.attempt, save.shards, plain, str(torch.__version__), files)


def manifest_text(manifest: Manifest) -> bytes:
    return json.dumps(manifest.to_json(), indent=1, allow_nan=False).encode()


def sidecar_text(sidecar: Sidecar) -> bytes:
    return json.dumps(sidecar.to_json()).encode()


def sentence(error: Exception) -> str:
    """What a user is told of an error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _checked_sidecar(save: SaveAttempt, folder: Folder, shard: int) -> Sidecar:
    name = sidecar_file(shard, save.shards)
    sidecar = parse_sidecar(folder, name)
    said = (sidecar.step, sidecar.attempt, sidecar.shard, sidecar.shards)
    if said != (save.step, save.attempt, shard, save.shards):
        raise SaveRefusedError(f"{name} belongs to another save")
    if folder.stat(sidecar.file).bytes != sidecar.bytes:
        raise SaveRefusedError(f"{sidecar.file} hasn't the size its writer said")
    return sidecar


SAVE_ERRORS = (OSError, ValueError, TypeError, KeyError, CheckpointError)
