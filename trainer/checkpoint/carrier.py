"""What happens to a shard once it is written: it is uploaded, committed, read back, and old ones are removed.

One thread of low priority, a job at a time, so that none of it takes the disk or the cores from training.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

from trainer.checkpoint.attempt import SaveAttempt, ShardContent, sentence
from trainer.checkpoint.blocks import FileSource, check_running
from trainer.checkpoint.errors import CheckpointError, SaveRefusedError
from trainer.checkpoint.folders import Folder
from trainer.checkpoint.local import LocalShard, LocalTier
from trainer.checkpoint.manifest import CheckpointMeta, Manifest, Sidecar, read_manifest
from trainer.checkpoint.outcomes import Committed, Outcome, SaveFailed, Warned
from trainer.checkpoint.proof import mark_file, prove_shard
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.tiers import Tier

_POLL_S = 0.02
_MARKS_TIMEOUT_S = 60.0
_NICE = 19


@dataclass
class Upload:
    """A shard of the local tier on its way to the durable one. The file is held open: retention may remove its name."""

    save: SaveAttempt
    shard: LocalShard
    began: float  # time.monotonic
    source: FileSource = field(init=False)

    def __post_init__(self) -> None:
        self.source = FileSource(self.shard.folder.path / self.shard.sidecar.file)


@dataclass(frozen=True)
class Proof:
    """A shard to read back: one of the local tier, or (its sidecar alone) of the durable one, once it is committed."""

    save: SaveAttempt
    shard: LocalShard | Sidecar
    local: LocalTier | None = None


class Carrier:
    """Runs its jobs in a thread of its own, in order. `report` takes outcomes. `retention`: shard 0's writer has one."""

    def __init__(
        self,
        tier: Tier,
        retention: Retention | None,
        cancelled: Event,
        report: Callable[[Outcome], object],
        commit_timeout_s: float,
    ) -> None:
        self._tier = tier
        self._retention = retention
        self._cancelled = cancelled
        self._report = report
        self._commit_timeout_s = commit_timeout_s
        self._jobs: deque[Upload | Proof] = deque()  # the first one is under way
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def uploads(self) -> int:
        """Not yet over."""
        return sum(isinstance(job, Upload) for job in list(self._jobs))

    def put(self, job: Upload | Proof) -> None:
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="carrier", daemon=True)
                self._thread.start()

    def wait_uploads(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.uploads == 0, max(0.0, timeout_s))

    def wait_all(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, max(0.0, timeout_s))

    def commit(self, save: SaveAttempt, meta: CheckpointMeta, began: float) -> None:
        """Of a shard that the durable tier has; for every shard, though only shard 0's has something to do.

        Raises SaveRefusedError.
        """
        if save.shard == 0:
            folder, manifest = self._tier.commit(save, meta, self._cancelled, self._commit_timeout_s)
            self._report(Committed(save.step, str(folder), manifest.digest, time.monotonic() - began))

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            self._do(self._jobs[0])
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()
                if not self._jobs:
                    self._thread = None
                    return

    def _do(self, job: Upload | Proof) -> None:
        try:
            if isinstance(job, Upload):
                self._upload(job)
            else:
                self._prove(job)
        except Exception as error:  # whatever it is, training goes on and the reason is reported
            kind = SaveFailed if isinstance(job, Upload) else Warned
            if not self._cancelled.is_set() or kind is SaveFailed:
                self._report(kind(job.save.step, sentence(error)))

    def _upload(self, job: Upload) -> None:
        try:
            found = self._tier.committed(job.save.step)
            if found is not None:  # by an earlier attempt; the report may have been lost
                if job.save.shard == 0:
                    self._report(Committed(job.save.step, str(found), read_manifest(found).digest, 0.0))
                return
            if job.save.shard == 0:
                self._tier.clear(job.save.attempt, before_step=job.save.step)
            sidecar = job.shard.sidecar
            content = ShardContent(job.source, sidecar.tensors, sidecar.blocks, sidecar.block_bytes)
            self._tier.put(job.save, content, self._cancelled)
        finally:
            job.source.close()
        self.commit(job.save, job.shard.manifest.meta, job.began)
        with self._changed:
            self._jobs.append(Proof(job.save, sidecar))

    def _prove(self, job: Proof) -> None:
        if isinstance(job.shard, LocalShard):
            self._read_back(job, job.shard.folder, job.shard.manifest, job.shard.sidecar)
            job.local.retain()
            return
        found = self._await_commit(job.save)
        if found is not None:
            self._read_back(job, *found, job.shard)
            if self._retention is not None:
                self._await_marks(*found)
                self._retention.apply()

    def _read_back(self, job: Proof, folder: Folder, manifest: Manifest, sidecar: Sidecar) -> None:
        try:
            prove_shard(folder, manifest, sidecar, lambda: check_running(self._cancelled))
        except FileNotFoundError:
            return  # retention was faster
        except CheckpointError as error:
            if not isinstance(error, SaveRefusedError):
                raise CheckpointError(f"committed, but it does not prove: {error}") from error

    def _await_commit(self, save: SaveAttempt) -> tuple[Folder, Manifest] | None:
        """The committed checkpoint of this save; None when there is none in time, or another attempt's."""
        deadline = time.monotonic() + self._commit_timeout_s
        while not self._cancelled.is_set() and time.monotonic() < deadline:
            gathering = self._tier.gathering(save)  # asked first: in between it may be committed
            folder = self._tier.committed(save.step)
            if folder is not None:
                manifest = read_manifest(folder)
                return (folder, manifest) if manifest.attempt == save.attempt else None
            if not gathering:
                return None
            self._cancelled.wait(_POLL_S)
        return None

    def _await_marks(self, folder: Folder, manifest: Manifest) -> None:
        """The other shards are read back at the same time; retention needs to know of all."""
        deadline, poll_s = time.monotonic() + _MARKS_TIMEOUT_S, _POLL_S
        marks = {mark_file(shard, manifest.shards) for shard in range(manifest.shards)}
        while not marks <= set(folder.names()) and time.monotonic() < deadline and not self._cancelled.wait(poll_s):
            poll_s = min(2 * poll_s, 1.0)
