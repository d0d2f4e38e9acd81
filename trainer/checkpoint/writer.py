"""Saves checkpoints in the background, in our own layout of safetensors and JSON.

torch.distributed.checkpoint is not used: its metadata is a pickle, and its asynchronous save meets in collectives,
which hang in a thread when the gang dies, and hold up the leave. Here ranks meet by files alone (see attempt.py). Its
tools can read what `export-dcp` makes of ours (dcp.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.attempt import SaveAttempt, ShardContent, sentence
from trainer.checkpoint.blocks import MemorySource, check_running
from trainer.checkpoint.carrier import Carrier, Proof, Upload
from trainer.checkpoint.errors import CheckpointDamagedError, SaveRefusedError
from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.local import LocalShard, LocalTier, SaveId
from trainer.checkpoint.manifest import CheckpointMeta, read_manifest
from trainer.checkpoint.outcomes import Committed, Outcome, SavedLocally, SaveFailed
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.staging import Image, Staging
from trainer.checkpoint.tiers import Tier, open_tier

_POLL_S = 0.02
_WAITING_UPLOADS = 2  # behind which a save waits: each holds disk space of the local tier


@dataclass(frozen=True)
class LocalPlan:
    """The node's own disk, and what tells this attempt's saves there from all others."""

    tier: LocalTier
    nonce: int


class AsyncWriter:
    """Writer of one shard in one attempt; `shard` is the rank within its replica.

    Without a local tier only the ranks of replica 0 have one. With one every rank has, and those of other replicas are
    not `durable`: they write to the local tier alone. Make it before the attempt's first collective: shard 0's removes
    what dead attempts left, and must not meet a save of its own attempt. `keep`, `keep_ephemeral`: see retention.py.
    `staging` is reused over attempts. Raises CheckpointError: a tier can't be made.
    """

    def __init__(
        self,
        place: Tier | Path,
        shard: int,
        shards: int,
        attempt: int,
        *,
        keep: int = 0,
        keep_ephemeral: int = 1,
        commit_timeout_s: float = 300.0,
        staging: Staging | None = None,
        durable: bool = True,
    ) -> None:
        self._tier: Tier = open_tier(place) if isinstance(place, Path) else place
        self._shard, self._shards, self._attempt = shard, shards, attempt
        self._staging = staging or Staging()
        self._local: LocalPlan | None = None
        self._cancelled = threading.Event()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._durable = durable
        if durable:
            self._tier.prepare()
            if shard == 0:
                self._tier.clear(attempt)
        retention = Retention(self._tier, keep, keep_ephemeral) if durable and shard == 0 else None
        self._carrier = Carrier(self._tier, retention, self._cancelled, self._outcomes.put, commit_timeout_s)

    def use_local(self, plan: LocalPlan) -> None:
        """Let saves go to the node's disk first, from now on. Raises CheckpointError, OSError."""
        plan.tier.prepare()
        self._local = plan

    def prepare(self, tensors: Mapping[str, ShardTensor]) -> None:
        """Get memory for the copies in the background, before the first save needs it."""
        self._staging.prepare(tensors)

    def save(
        self, step: int, tensors: Mapping[str, ShardTensor], meta: CheckpointMeta, *, upload: bool = True
    ) -> float:
        """Begin to copy the tensors and to write them; the milliseconds that the caller stood still.

        The tensors must not change before `wait_staged` has returned. A save still being written is waited for first. A
        step already committed is left as it is, and reported again by shard 0, as the first report may have been lost.
        `meta` counts on shard 0, and everywhere in a local tier. upload: to the durable tier, where there is a local
        one. Outcomes come by `poll`.
        """
        begin = time.monotonic()
        self._join()
        save = SaveAttempt(step, self._attempt, self._shard, self._shards)
        try:
            if not self._exists(save):
                image = self._staging.begin(tensors, self._cancelled)
                self._thread = threading.Thread(
                    target=self._write, args=(save, image, meta, upload), name=f"checkpoint-{step}", daemon=True
                )
                self._thread.start()
        except (SaveRefusedError, OSError) as error:
            self._outcomes.put(SaveFailed(step, sentence(error)))
        return (time.monotonic() - begin) * 1e3

    def wait_staged(self) -> float:
        """Return when the tensors of the last save may change; the milliseconds that the caller stood still."""
        return self._staging.finish()

    def upload(self, shard: LocalShard) -> None:
        """Carry a shard of an earlier attempt's save to the durable tier, which lacks it."""
        save = SaveAttempt(shard.manifest.step, self._attempt, self._shard, self._shards)
        self._carrier.put(Upload(save, shard, time.monotonic()))

    def poll(self) -> list[Outcome]:
        """Outcomes since the last call, oldest first. Never blocks. Only shard 0's writer reports commits."""
        found = []
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        return found

    def wait(self, timeout_s: float) -> bool:
        """Wait for the save that is being written, for shard 0 up to its commit. False when it isn't over in time."""
        deadline = time.monotonic() + timeout_s
        if self._thread is not None:
            self._thread.join(timeout_s)
        written = self._thread is None or not self._thread.is_alive()
        return written and self._carrier.wait_uploads(deadline - time.monotonic())

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was saved is proven and retention has been applied, too."""
        deadline = time.monotonic() + timeout_s
        return self.wait(timeout_s) and self._carrier.wait_all(deadline - time.monotonic())

    def cancel(self) -> None:
        """Give up what isn't committed, at once, for good; for a leave. May be called from any thread.

        A commit in its last instant may still succeed, which is as good as one a moment earlier.
        """
        self._cancelled.set()

    def _join(self) -> None:
        while self._busy() and not self._cancelled.is_set():
            time.sleep(_POLL_S)

    def _busy(self) -> bool:
        writing = self._thread is not None and self._thread.is_alive()
        return writing or self._carrier.uploads >= _WAITING_UPLOADS

    def _exists(self, save: SaveAttempt) -> bool:
        """Whether the durable tier has this step; for ranks that write there."""
        check_running(self._cancelled)
        found = self._tier.committed(save.step) if self._durable and self._local is None else None
        if found is None:
            return False
        if self._shard == 0:
            try:
                self._outcomes.put(Committed(save.step, str(found), read_manifest(found).digest, 0.0))
            except CheckpointDamagedError as error:
                raise SaveRefusedError(f"already there, but damaged: {error.why}") from error
        return True

    def _write(self, save: SaveAttempt, image: Image, meta: CheckpointMeta, upload: bool) -> None:
        begin = time.monotonic()
        try:
            if self._durable and self._shard == 0 and self._local is None:
                self._tier.clear(self._attempt, before_step=save.step)
            self._wait_image(save, image)
            content = ShardContent(MemorySource(image.memory), image.plan.tensors)
            if self._local is not None and self._write_local(save, content, meta, upload, begin):
                return
            if self._durable and (upload or self._local is None):
                self._write_durable(save, content, meta, begin)
        except Exception as error:  # whatever it is, training goes on and the reason is reported
            self._outcomes.put(SaveFailed(save.step, sentence(error)))
        finally:
            image.release()

    def _wait_image(self, save: SaveAttempt, image: Image) -> None:
        try:
            image.wait(self._cancelled)
        except SaveRefusedError as error:
            if self._durable and self._local is None:
                raise SaveRefusedError(self._tier.refuse(save, error)) from error
            raise

    def _write_local(
        self, save: SaveAttempt, content: ShardContent, meta: CheckpointMeta, upload: bool, begin: float
    ) -> bool:
        """False when the local tier can't take it: then it goes to the durable one, if it has to, from memory."""
        save_id = SaveId(save.step, save.attempt, self._local.nonce)
        try:
            shard = self._local.tier.write(save_id, save, content, meta, self._cancelled)
        except SaveRefusedError as error:
            self._outcomes.put(SaveFailed(save.step, str(error), durable=False))
            return False
        self._outcomes.put(SavedLocally(save.step, str(shard.folder), time.monotonic() - begin))
        if upload and self._durable:
            self._carrier.put(Upload(save, shard, begin))
        self._carrier.put(Proof(save, shard, self._local.tier))
        return True

    def _write_durable(self, save: SaveAttempt, content: ShardContent, meta: CheckpointMeta, begin: float) -> None:
        sidecar = self._tier.put(save, content, self._cancelled)
        self._carrier.commit(save, meta, begin)
        self._carrier.put(Proof(save, sidecar))
