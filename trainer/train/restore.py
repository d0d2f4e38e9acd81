"""Puts the state in place when a gang has formed: decides from the ranks' statuses, purely, then moves what is missing.

If any rank completed the vote of a step, every living rank holds that step's reduced gradients: they are sent the
ballots, with the window that these are judged by, and finish it. If none did, what was computed of the step is dropped.
Then each rank without the state gets its shard from the lowest replica that holds it. When some shard has no holder, all
go back to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from trainer.parallel.layout import Layout
from trainer.train.state import Memory


@dataclass(frozen=True)
class Status:
    """What a rank brings to the gang. Steps are 0 for none."""

    wants_checkpoint: bool  # the supervisor's order: held states don't count
    holds_state: bool
    step: int  # of the held state
    ballots_step: int  # whose ballots are held
    kept_step: int  # whose reduced gradients are held and not applied

    @classmethod
    def of(cls, memory: Memory, restore: str) -> Status:
        ballots_step = memory.ballots.step if memory.ballots else 0
        return cls(restore == "checkpoint", memory.state is not None, memory.step, ballots_step, memory.kept_step)

    def pack(self) -> list[int]:
        return [int(value) for value in astuple(self)]

    @classmethod
    def unpack(cls, values: Sequence[int]) -> Status:
        wants_checkpoint, holds_state, step, ballots_step, kept_step = values
        return cls(bool(wants_checkpoint), bool(holds_state), step, ballots_step, kept_step)


@dataclass(frozen=True)
class PeerPlan:
    """How all ranks come to the state after `step` without a checkpoint.

    Rank `ballots_from` sends the ballots of `step` to all (None: no rank holds them, and none needs them). The ranks in
    `finishing` apply the step from the gradients they kept. Then each (giver, receiver) moves one shard.
    """

    step: int
    ballots_from: int | None
    finishing: frozenset[int]
    transfers: tuple[tuple[int, int], ...]

    @property
    def receivers(self) -> frozenset[int]:
        return frozenset(receiver for _, receiver in self.transfers)


def plan_restore(statuses: Sequence[Status], layout: Layout) -> PeerPlan | None:
    """The plan for these statuses, in rank order; None: from the checkpoint. The same on every rank."""
    held = {rank: status for rank, status in enumerate(statuses) if status.holds_state}
    if not held or any(status.wants_checkpoint for status in statuses):
        return None
    step = max(max(status.step, status.ballots_step) for status in held.values())
    voters = [rank for rank, status in held.items() if status.ballots_step == step]
    finishing = frozenset(
        rank for rank, status in held.items() if voters and status.step == step - 1 and status.kept_step == step
    )
    able = finishing | {rank for rank, status in held.items() if status.step == step}
    transfers = []
    for rank in range(layout.world):
        if rank in able:
            continue
        givers = [giver for giver in layout.holders(rank % layout.shards) if giver in able]
        if not givers:
            return None
        transfers.append((givers[0], rank))
    return PeerPlan(step, voters[0] if voters else None, finishing, tuple(transfers))
