"""When checkpoints are taken, where they go, and what they hold of a train state."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import asdict
from pathlib import Path

from trainer.checkpoint.choice import common, pack, unpack
from trainer.checkpoint.digest import json_digest
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.local import LocalTier, SaveId
from trainer.checkpoint.manifest import EPHEMERAL, PERMANENT, CheckpointMeta
from trainer.checkpoint.outcomes import Committed, SaveFailed, Warned
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.tiers import Tier, open_tier
from trainer.checkpoint.urls import StorageError
from trainer.checkpoint.writer import AsyncWriter, LocalPlan
from trainer.config import TrainConfig
from trainer.config_parse import ConfigError
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.protocol.reporter import Reporter
from trainer.train.state import TrainState

_WAIT_S = 0.05
_PROOF_WAIT_S = 60.0  # at the end of a run; what is not proven by then is still checked when it is read
_NONCE_BITS = 62  # they travel as int64


class Saver:
    """Saves states in the background, attempt after attempt, and knows the tiers.

    The ranks of replica 0 write to the durable tier. With a local tier every rank writes there, so that each node can
    read the shards of its own ranks. Generators aren't saved: each step seeds them from the run's seed, the step and the
    rank. Raises ConfigError for a checkpoint.path that can't be used here.
    """

    def __init__(self, config: TrainConfig, fingerprint: dict) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._writer: AsyncWriter | None = None
        self._staging = Staging()
        self._stall_ms = 0.0
        self._model = {"name": config.model.name, "overrides": config.model.overrides}
        self._config_sha256 = json_digest(asdict(config))
        self.local: LocalTier | None = None
        try:
            self.tier: Tier = open_tier(checkpoint_place(config))
        except StorageError as error:
            raise ConfigError("checkpoint.path", str(error)) from error

    def begin(self, gang: Gang, reporter: Reporter) -> None:
        """Take part in an attempt.

        To be called before its first collective: what dead attempts left unfinished is removed here, and a save of this
        attempt must not be taken for it. A save in flight of the attempt before is given up.
        """
        self._gang = gang
        self._reporter = reporter
        self._failed: dict[int, str] = {}
        self._staging.finish()
        if self._writer is not None:
            self._writer.cancel()
        self.report()
        self._writer = None
        layout, ckpt = gang.layout, self._config.checkpoint
        if layout.replica == 0 or ckpt.local_path:
            self._writer = AsyncWriter(
                self.tier,
                layout.shard,
                layout.shards,
                gang.attempt,
                keep=ckpt.keep,
                keep_ephemeral=ckpt.keep_ephemeral,
                staging=self._staging,
                durable=layout.replica == 0,
            )

    def join(self) -> None:
        """The part of `begin` that needs the formed gang: the local tier, and what it has yet to upload."""
        path = self._config.checkpoint.local_path
        if not path:
            return
        layout = self._gang.layout
        rows = self._gang.gather([random.SystemRandom().getrandbits(_NONCE_BITS), _node_number()])
        here = frozenset(rank % layout.shards for rank, (_, node) in enumerate(rows) if node == _node_number())
        self.local = LocalTier(Path(path), self._config.checkpoint.local_keep, here)
        self._writer.use_local(LocalPlan(self.local, rows[0][0]))
        self._resume_uploads()

    def due(self, step: int) -> bool:
        """Each interval of either kind, and at the end."""
        return step > 0 and (self._permanent(step) or self._ephemeral(step))

    def prepare(self, state: TrainState, model: ShardedModel) -> None:
        """Get memory for the copies, in the background."""
        if self._writer is not None:
            self._writer.prepare(_pieces(state, model))

    def save(self, state: TrainState, model: ShardedModel) -> None:
        """Begin to save. The state must not change before `wait_staged`."""
        if self._writer is None:
            return
        asked = not self._permanent(state.step) and not self._ephemeral(state.step)
        upload = asked or self._permanent(state.step)
        self._stall_ms += self._writer.save(state.step, _pieces(state, model), self._meta(state), upload=upload)

    def wait_staged(self) -> None:
        """Return when the state of the last save may change."""
        if self._writer is not None:
            self._stall_ms += self._writer.wait_staged()

    def take_stall_ms(self) -> float:
        """Milliseconds that training stood still for saves since the last call."""
        taken, self._stall_ms = self._stall_ms, 0.0
        return taken

    def report(self) -> None:
        """Say what has become of the saves so far."""
        for outcome in self._writer.poll() if self._writer else ():
            match outcome:
                case Committed():
                    self._reporter.checkpoint(outcome.step, outcome.path, outcome.digest, outcome.write_s)
                case SaveFailed():
                    where = "" if outcome.durable else " in the local tier"
                    print(f"no checkpoint of step {outcome.step}{where}: {outcome.why}", flush=True)
                    if outcome.durable:
                        self._failed[outcome.step] = outcome.why
                case Warned():
                    print(f"checkpoint of step {outcome.step}: {outcome.why}", flush=True)

    def finish(self, step: int) -> None:
        """Wait until the last save is over. Raises CheckpointError when that of `step` failed: no run may end so."""
        while self._writer is not None and not self._writer.wait(_WAIT_S):
            self._gang.check()
        self.report()
        if step in self._failed:
            raise CheckpointError(f"the final checkpoint failed: {self._failed[step]}")
        give_up_at = time.monotonic() + _PROOF_WAIT_S
        while self._writer is not None and not self._writer.settle(_WAIT_S) and time.monotonic() < give_up_at:
            self._gang.check()
        self.report()

    def _permanent(self, step: int) -> bool:
        return step % self._config.checkpoint.interval_steps == 0 or step == self._config.steps

    def _ephemeral(self, step: int) -> bool:
        interval = self._config.checkpoint.ephemeral_interval_steps
        return interval > 0 and step % interval == 0

    def _meta(self, state: TrainState) -> CheckpointMeta:
        layout = self._gang.layout
        return CheckpointMeta(
            position=state.step,
            tokens=state.step * self._config.batch_tokens,
            seed=self._config.seed,
            data=self._fingerprint,
            statistics=state.statistics(),
            mesh={"replicas": layout.replicas, "shards": layout.shards},
            kind=PERMANENT if self._permanent(state.step) else EPHEMERAL,
            model=self._model,
            config_sha256=self._config_sha256,
        )

    def _resume_uploads(self) -> None:
        """Upload the permanent saves that an earlier attempt left in the local tier alone."""
        layout = self._gang.layout
        own = {
            save_id: shard
            for save_id in self.local.saves()
            if (shard := self.local.shard(save_id, layout.shard, layout.shards)) is not None
            and shard.manifest.meta.kind == PERMANENT
        }
        if layout.rank == 0:
            own = {save_id: shard for save_id, shard in own.items() if not self._is_committed(save_id)}
        rows = self._gang.gather(pack(own))
        for save_id in sorted(common([unpack(row) for row in rows[: layout.shards]])):
            if layout.replica == 0:
                self._writer.upload(own[save_id])

    def _is_committed(self, save_id: SaveId) -> bool:
        return self.tier.committed(save_id.step) is not None


def checkpoint_place(config: TrainConfig) -> str:
    """Path or URL of the durable tier."""
    return config.checkpoint.path or str(Path(config.run_dir) / "checkpoints")


def _pieces(state: TrainState, model: ShardedModel) -> dict[str, ShardTensor]:
    pieces = model.pieces()
    return {
        name: ShardTensor(tensor, pieces[parameter].shape, pieces[parameter].offset)
        for name, tensor in state.tensors().items()
        for parameter in [name.partition(".")[2]]
    }


def _node_number() -> int:
    """The same for all processes of a machine, below 2^62."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return int.from_bytes(hashlib.sha256(boot_id).digest()[:8], "little") >> 2
