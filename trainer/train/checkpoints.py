"""When checkpoints are taken, what they hold of a train state, and how a state comes back from them."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.checkpoint.attempt import ShardTensor
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.manifest import CheckpointMeta, read_manifest
from trainer.checkpoint.reader import load, newest_proven
from trainer.checkpoint.retention import set_aside
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.writer import AsyncWriter, Committed
from trainer.config import TrainConfig
from trainer.data.dataset import check_fingerprint
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.protocol.reporter import Reporter
from trainer.train.exchange import zero_state
from trainer.train.state import TrainState

_WAIT_S = 0.05


class Saver:
    """Saves states in the background, attempt after attempt. Ranks of replica 0 write; on the others nothing happens.

    A save in flight when an attempt ends may still commit, until the next attempt begins. Generators aren't saved: each
    step seeds them from the run's seed, the step and the rank.
    """

    def __init__(self, config: TrainConfig, fingerprint: dict) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._writer: AsyncWriter | None = None

    def begin(self, gang: Gang, reporter: Reporter) -> None:
        """Take part in an attempt.

        To be called before its first collective: what dead attempts left unfinished is removed here, and a save of this
        attempt must not be taken for it.
        """
        self._gang = gang
        self._reporter = reporter
        self._failed: dict[int, str] = {}
        self.report()
        self._writer = None
        layout, root, keep = gang.layout, checkpoint_root(self._config), self._config.checkpoint.keep
        if layout.replica == 0:
            self._writer = AsyncWriter(root, layout.shard, layout.shards, gang.attempt, keep=keep)

    def due(self, step: int) -> bool:
        """Each interval and at the end."""
        return step > 0 and (step % self._config.checkpoint.interval_steps == 0 or step == self._config.steps)

    def save(self, state: TrainState, model: ShardedModel) -> float:
        """Begin to save; returns the milliseconds that training stood still."""
        if self._writer is None:
            return 0.0
        pieces = model.pieces()
        tensors = {
            name: ShardTensor(tensor, pieces[parameter].shape, pieces[parameter].offset)
            for name, tensor in state.tensors().items()
            for parameter in [name.partition(".")[2]]
        }
        return self._writer.save(state.step, tensors, self._meta(state))

    def report(self) -> None:
        """Say what has become of the saves so far."""
        for outcome in self._writer.poll() if self._writer else ():
            if isinstance(outcome, Committed):
                self._reporter.checkpoint(outcome.step, outcome.path, outcome.digest, outcome.write_s)
            else:
                self._failed[outcome.step] = outcome.why
                print(f"no checkpoint of step {outcome.step}: {outcome.why}", flush=True)

    def finish(self, step: int) -> None:
        """Wait until the last save is over. Raises CheckpointError when that of `step` failed: no run may end so."""
        while self._writer is not None and not self._writer.wait(_WAIT_S):
            self._gang.check()
        self.report()
        if step in self._failed:
            raise CheckpointError(f"the final checkpoint failed: {self._failed[step]}")

    def _meta(self, state: TrainState) -> CheckpointMeta:
        layout = self._gang.layout
        return CheckpointMeta(
            position=state.step,
            tokens=state.step * self._config.batch_tokens,
            seed=self._config.seed,
            data=self._fingerprint,
            statistics={"updates": state.updates, "skipped": state.skipped},
            mesh={"replicas": layout.replicas, "shards": layout.shards},
        )


def checkpoint_root(config: TrainConfig) -> Path:
    return Path(config.checkpoint.path or Path(config.run_dir) / "checkpoints")


def agree_on_checkpoint(root: Path, gang: Gang, reporter: Reporter) -> Path | None:
    """The newest checkpoint that proves, the same on all ranks; rank 0 proves, and sets damaged ones aside.

    None when there is none.
    """
    name = torch.zeros(4096, dtype=torch.uint8)
    if gang.layout.rank == 0:
        newest = newest_proven(root)
        for path, why in newest.rejected:
            reporter.checkpoint_rejected(path, why)
            print(f"checkpoint {path} passed over: {why}", flush=True)
            set_aside(path)
        chosen = newest.path.name.encode() if newest.path else b""
        name[: len(chosen)] = torch.tensor(list(chosen), dtype=torch.uint8)
    gang.broadcast(name, 0)
    text = bytes(name.tolist()).rstrip(b"\0").decode()
    return root / text if text else None


def load_state(path: Path, model: ShardedModel, fingerprint: dict) -> TrainState:
    """This rank's state from a proven checkpoint of any mesh; fills the model.

    Raises DataMismatchError when it was trained on other data, CheckpointMismatchError when it holds another model.
    """
    manifest = read_manifest(path)
    check_fingerprint(manifest.meta.data, fingerprint)
    state = zero_state(model)
    targets = state.tensors()
    pieces = model.pieces()
    wanted = {name: Slice(pieces[name.partition(".")[2]].offset, len(tensor)) for name, tensor in targets.items()}
    for name, tensor in load(path, wanted).items():
        targets[name].copy_(tensor)
    state.step = manifest.meta.position
    state.updates = int(manifest.meta.statistics["updates"])
    state.skipped = int(manifest.meta.statistics["skipped"])
    return state
