"""How a gang comes to a state from checkpoints: all ranks from the same one, each checking what it reads.

Each rank reads its own slices, in parallel with all others, and digests them on the way: no separate proof has to read
the checkpoint first. When any rank finds damage, all fall back to the next checkpoint together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.checkpoint.choice import choose, pack, unpack
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointError
from trainer.checkpoint.folders import Folder
from trainer.checkpoint.local import LocalTier, SaveId
from trainer.checkpoint.manifest import step_of
from trainer.checkpoint.reader import Shards, open_shards
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.tiers import Tier
from trainer.data.dataset import check_fingerprint
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.protocol.reporter import Reporter
from trainer.train.exchange import zero_state
from trainer.train.state import SLOTS, TrainState

_TEXT_BYTES = 4096
_READ_BYTES = 4 << 30  # of tensors held in host memory at a time, on the way to the device


@dataclass(frozen=True)
class Candidate:
    """What all ranks try next: a save of the local tiers (`save_id`), or the durable checkpoint `folder`."""

    save_id: SaveId | None
    folder: Folder


class DiskRestore:
    """One restore of one attempt. Every rank makes one, and calls `run` at the same time."""

    def __init__(
        self, tier: Tier, local: LocalTier | None, gang: Gang, reporter: Reporter, model: ShardedModel, data: dict
    ) -> None:
        self._tier, self._local = tier, local
        self._gang, self._reporter = gang, reporter
        self._model = model
        self._data = data
        self._rejected: set[str] = set()
        self._saves = {} if local is None else local.saves()

    def run(self) -> tuple[TrainState, str] | None:
        """This rank's state, which fills the model, and the path it came from; None when there is no checkpoint.

        Raises DataMismatchError when it was trained on other data, CheckpointMismatchError when it holds another model,
        CheckpointFormatError when another version wrote it, CheckpointError when the durable tier does not answer.
        """
        while True:
            candidate = self._choose()
            if candidate is None:
                return None
            state, why = self._read(candidate)
            found = self._agree(why)
            if not found:
                return state, str(candidate.folder)
            self._reject(candidate, found, why)

    def _choose(self) -> Candidate | None:
        name = self._broadcast(self._newest_durable() if self._gang.layout.rank == 0 else "", 0)
        durable = self._tier.open(name) if name else None
        save_id = None
        if self._local is not None:
            wanted = self._wanted()
            readable = {
                each: shards
                for each, shards in self._saves.items()
                if each.folder not in self._rejected and shards.covers(wanted)
            }
            rows = self._gang.gather(pack(readable))
            save_id = choose([unpack(row) for row in rows], step_of(durable) if durable else None)
        if save_id is not None:
            return Candidate(save_id, self._saves[save_id].folder)
        return Candidate(None, durable) if durable else None

    def _newest_durable(self) -> str:
        names = (folder.name for folder in list_durable(self._tier))
        return next((name for name in names if name not in self._rejected), "")

    def _read(self, candidate: Candidate) -> tuple[TrainState | None, str]:
        """The state, or why this checkpoint is damaged."""
        try:
            shards = open_shards(candidate.folder) if candidate.save_id is None else self._saves[candidate.save_id]
            if shards.sidecars[0].step != step_of(candidate.folder) and candidate.save_id is None:
                raise CheckpointDamagedError(candidate.folder, f"its shards are of step {shards.sidecars[0].step}")
            return self._fill(shards), ""
        except CheckpointDamagedError as error:
            return None, error.why

    def _fill(self, shards: Shards) -> TrainState:
        check_fingerprint(shards.meta.data, self._data)
        state = zero_state(self._model)
        targets, shapes = state.tensors(), self._shapes()
        for names in _batches(targets):
            wanted = {name: piece for name, piece in self._wanted().items() if name in names}
            for name, tensor in shards.read(wanted, {name: shapes[name] for name in names}).items():
                targets[name].copy_(tensor)
        state.step = shards.meta.position
        state.set_statistics(shards.meta.statistics)
        return state

    def _wanted(self) -> dict[str, Slice]:
        pieces = self._model.pieces()
        return {
            f"{slot}.{name}": Slice(pieces[name].offset, len(shard))
            for slot in SLOTS
            for name, shard in self._model.shards.items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        pieces = self._model.pieces()
        return {name: pieces[name.partition(".")[2]].shape for name in self._wanted()}

    def _agree(self, why: str) -> str:
        """Why the lowest rank that found damage did so, on all ranks; empty when none did."""
        failed = [rank for rank, (bad,) in enumerate(self._gang.gather([int(bool(why))])) if bad]
        return self._broadcast(why, failed[0]) if failed else ""

    def _reject(self, candidate: Candidate, found: str, own: str) -> None:
        self._rejected.add(candidate.folder.name)
        first = self._gang.layout.rank == 0
        if first:
            self._reporter.checkpoint_rejected(str(candidate.folder), found)
            print(f"checkpoint {candidate.folder} passed over: {found}", flush=True)
        try:
            if candidate.save_id is not None and own:
                self._local.set_aside(candidate.save_id)
            elif candidate.save_id is None and first:
                self._tier.set_aside(candidate.folder)
        except OSError as error:
            print(f"checkpoint {candidate.folder} can't be set aside: {error}", flush=True)

    def _broadcast(self, text: str, source: int) -> str:
        content = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        if self._gang.layout.rank == source:
            encoded = text.encode()[:_TEXT_BYTES]
            content[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        self._gang.broadcast(content, source)
        return bytes(content.tolist()).rstrip(b"\0").decode(errors="ignore")


def list_durable(tier: Tier) -> list[Folder]:
    """As `tier.folders`. Raises CheckpointError when the storage does not answer: a run must not begin anew for that."""
    try:
        return tier.folders()
    except OSError as error:
        raise CheckpointError(f"{tier} can't be listed: {error}") from error


def _batches(tensors: dict[str, torch.Tensor]) -> list[set[str]]:
    batches: list[set[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            batches.append(set())
            room = _READ_BYTES
        batches[-1].add(name)
        room -= tensor.nbytes
    return batches
