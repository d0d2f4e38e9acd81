"""Saves checkpoints in the background, in our own layout of safetensors and JSON.

torch.distributed.checkpoint is not used: its metadata is a pickle, and its asynchronous save meets in collectives,
which hang in a thread when the gang dies, and hold up the leave. Here ranks meet by files alone (see attempt.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint.attempt import (
    SaveAttempt,
    ShardTensor,
    clear_unfinished,
    commit,
    write_shard,
)
from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.manifest import CheckpointMeta, read_manifest
from trainer.checkpoint.retention import retain

_POLL_S = 0.02


@dataclass(frozen=True)
class Committed:
    """A checkpoint is visible and synced. digest: of its manifest. write_s: from the end of the stall to the commit."""

    step: int
    path: Path
    digest: str
    write_s: float


@dataclass(frozen=True)
class SaveFailed:
    """This step has no checkpoint of this attempt; older ones are untouched."""

    step: int
    why: str


class AsyncWriter:
    """Writer of one shard in one attempt. Only the ranks of replica 0 have one; `shard` is their rank within it.

    Make it before the attempt's first collective: shard 0's removes what dead attempts left, and must not meet a save
    of its own attempt. `keep`: how many committed checkpoints remain (0: all). Raises OSError: `root` can't be made.
    """

    def __init__(
        self, root: Path, shard: int, shards: int, attempt: int, *, keep: int = 0, commit_timeout_s: float = 300.0
    ) -> None:
        self._root = Path(root)
        self._shard, self._shards, self._attempt = shard, shards, attempt
        self._keep = keep
        self._commit_timeout_s = commit_timeout_s
        self._cancelled = threading.Event()
        self._outcomes: queue.SimpleQueue[Committed | SaveFailed] = queue.SimpleQueue()
        self._staged: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._root.mkdir(parents=True, exist_ok=True)
        if shard == 0:
            clear_unfinished(self._root, attempt)

    def save(self, step: int, tensors: Mapping[str, ShardTensor], meta: CheckpointMeta) -> float:
        """Copy the tensors, begin to write them, return the milliseconds that the caller stood still.

        A save still being written is waited for first. A step already committed is left as it is, and reported again
        by shard 0, as the first report may have been lost. `meta` counts on shard 0. Outcomes come by `poll`.
        """
        begin = time.monotonic()
        self._join()
        save = SaveAttempt(self._root, step, self._attempt, self._shard, self._shards)
        if self._cancelled.is_set():
            self._outcomes.put(SaveFailed(step, "cancelled"))
        elif save.final.exists():
            self._report_existing(save)
        else:
            staged = self._stage(tensors)
            self._thread = threading.Thread(
                target=self._write, args=(save, staged, meta), name=f"checkpoint-{step}", daemon=True
            )
            self._thread.start()
        return (time.monotonic() - begin) * 1e3

    def poll(self) -> list[Committed | SaveFailed]:
        """Outcomes since the last call, oldest first. Never blocks. Only shard 0's writer reports commits."""
        found = []
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        return found

    def wait(self, timeout_s: float) -> bool:
        """Wait for the save that is being written, for shard 0 up to its commit. False when it isn't over in time."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def cancel(self) -> None:
        """Give up what isn't committed, at once, for good; for a leave. May be called from any thread.

        A commit in its last instant may still succeed, which is as good as one a moment earlier.
        """
        self._cancelled.set()

    def _join(self) -> None:
        while self._thread is not None and self._thread.is_alive() and not self._cancelled.is_set():
            self._thread.join(_POLL_S)

    def _stage(self, tensors: Mapping[str, ShardTensor]) -> dict[str, ShardTensor]:
        """Copies in host memory that is kept for the next save; pinned for CUDA, where the copies overlap."""
        on_cuda = False
        staged = {}
        for name, piece in tensors.items():
            local = piece.local.detach()
            buffer = self._staged.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self._staged[name] = buffer
            buffer.copy_(local, non_blocking=local.is_cuda)
            on_cuda = on_cuda or local.is_cuda
            staged[name] = ShardTensor(buffer, tuple(piece.global_shape), piece.offset)
        if on_cuda:
            torch.cuda.synchronize()
        return staged

    def _write(self, save: SaveAttempt, staged: dict[str, ShardTensor], meta: CheckpointMeta) -> None:
        begin = time.monotonic()
        try:
            if self._shard == 0:
                clear_unfinished(self._root, self._attempt, but_step=save.step)
            write_shard(save, staged, self._cancelled)
            if self._shard == 0:
                manifest = commit(save, meta, self._cancelled, self._commit_timeout_s)
                self._outcomes.put(Committed(save.step, save.final, manifest.digest, time.monotonic() - begin))
        except Exception as error:  # whatever it is, training goes on and the reason is reported
            self._outcomes.put(SaveFailed(save.step, str(error) or type(error).__name__))
            return
        self._retain(save.step)

    def _retain(self, step: int) -> None:
        try:
            if self._shard == 0:
                retain(self._root, self._keep)
        except OSError as error:
            self._outcomes.put(SaveFailed(step, f"committed, but older ones couldn't be removed: {error}"))

    def _report_existing(self, save: SaveAttempt) -> None:
        if self._shard != 0:
            return
        try:
            self._outcomes.put(Committed(save.step, save.final, read_manifest(save.final).digest, 0.0))
        except CheckpointDamagedError as error:
            self._outcomes.put(SaveFailed(save.step, f"already there, but damaged: {error.why}"))
