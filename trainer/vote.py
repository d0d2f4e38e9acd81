"""The vote that ends a step: all ranks apply it, or none does. Pure.

After the backward pass each rank waits for its own reductions, then all gather each rank's ballot. Whoever holds all
ballots knows that every rank holds its whole reduced gradient, so the step can be finished everywhere, even by a rank
that lost the vote and is sent the ballots later. Norm and loss are summed from the ballots in rank order: the same bits
on all ranks. Replicas of a shard must have voted the same norm, bit for bit: a free check for silent corruption. Whether
the step is an outlier follows from them and the window before the step, which is equal on all ranks, too.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trainer.outliers import Window
from trainer.parallel.layout import Layout

BALLOT_FIELDS = 6
MAX_TRIES = 2  # a step that isn't finite is tried once more on the same data, then skipped


@dataclass(frozen=True)
class Ballot:
    """One rank's word on a step. `squared_norm` is of its reduced shard, float64; `loss` the mean over its tokens."""

    step: int
    tries: int  # 1 for the first
    squared_norm: float
    loss: float
    wants_save: bool = False  # a checkpoint after this step, asked of this rank
    faulty: bool = False  # an error of its own that came after the backward pass: the step must not count

    def pack(self) -> list[int]:
        """BALLOT_FIELDS int64: floats travel as their bits."""
        floats = [_bits(self.squared_norm), _bits(self.loss)]
        return [self.step, self.tries, *floats, int(self.wants_save), int(self.faulty)]

    @classmethod
    def unpack(cls, fields: Sequence[int]) -> Ballot:
        step, tries, norm, loss, wants_save, faulty = fields
        return cls(step, tries, _float(norm), _float(loss), bool(wants_save), bool(faulty))


class Outcome(StrEnum):
    UPDATE = "update"
    RETRY = "retry"  # not finite: the same step again
    SKIP = "skip"  # not finite again: the step counts, weights and moments stay as they are
    OUTLIER = "outlier"  # finite, but far above the last steps: skipped, too
    FAULT = "fault"  # a rank gave it up
    DIVERGED = "diverged"  # ranks disagree on what must be equal


@dataclass(frozen=True)
class Verdict:
    """What the ballots say, the same on every rank. `norm` is the global gradient norm, `loss` the mean over ranks."""

    outcome: Outcome
    step: int
    norm: float
    loss: float
    save: bool
    why: str = ""

    @property
    def finishes(self) -> bool:
        """Whether the step counts as done once it is carried out."""
        return self.outcome in (Outcome.UPDATE, Outcome.SKIP, Outcome.OUTLIER)


def tally(ballots: Sequence[Ballot], layout: Layout, window: Window, sigma: float) -> Verdict:
    """The verdict of one ballot a rank, in rank order. `window` is of the steps before; `sigma` 0 lets outliers pass."""
    step, tries = ballots[0].step, ballots[0].tries
    # Each shard counts once: replica 0's ranks are the first.
    norm = math.sqrt(_sum(ballot.squared_norm for ballot in ballots[: layout.shards]))
    loss = _sum(ballot.loss for ballot in ballots) / layout.world
    save = any(ballot.wants_save for ballot in ballots)

    def verdict(outcome: Outcome, why: str = "") -> Verdict:
        return Verdict(outcome, step, norm, loss, save, why)

    if any((ballot.step, ballot.tries) != (step, tries) for ballot in ballots):
        return verdict(Outcome.DIVERGED, f"ranks are at different steps: {[(b.step, b.tries) for b in ballots]}")
    if faulty := [rank for rank, ballot in enumerate(ballots) if ballot.faulty]:
        return verdict(Outcome.FAULT, f"{_listed(faulty)} gave step {step} up")
    if why := _unequal_replicas(ballots, layout):
        return verdict(Outcome.DIVERGED, why)
    if why := _not_finite(ballots):
        return verdict(Outcome.RETRY if tries < MAX_TRIES else Outcome.SKIP, f"step {step} is not finite: {why}")
    if why := window.why_outlier(loss, norm, sigma):
        return verdict(Outcome.OUTLIER, f"step {step} is an outlier: {why}")
    return verdict(Outcome.UPDATE)


def _not_finite(ballots: Sequence[Ballot]) -> str:
    """Whose loss and whose reduced gradient; empty when all are finite.

    A loss is its rank's own. A gradient was summed over ranks, so it tells where the value ended, not where it arose.
    """
    losses = [rank for rank, ballot in enumerate(ballots) if not math.isfinite(ballot.loss)]
    norms = [rank for rank, ballot in enumerate(ballots) if not math.isfinite(ballot.squared_norm)]
    named = (("loss", losses), ("reduced gradient", norms))
    return ", ".join(f"{what} of {_listed(ranks)}" for what, ranks in named if ranks)


def _listed(ranks: Sequence[int]) -> str:
    """Eight by number: a thousand say no more."""
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{more}"


def _unequal_replicas(ballots: Sequence[Ballot], layout: Layout) -> str:
    for shard in range(layout.shards):
        votes = {rank: _bits(ballots[rank].squared_norm) for rank in layout.holders(shard)}
        if len(set(votes.values())) > 1 and not all(math.isnan(_float(bits)) for bits in votes.values()):
            norms = ", ".join(f"rank {rank}: {_float(bits).hex()}" for rank, bits in votes.items())
            return (
                f"replicas hold different gradients of shard {shard} at step {ballots[0].step}: squared norms {norms}"
            )
    return ""


def _sum(values: Iterable[float]) -> float:
    """In the order given. The built-in sum compensates since Python 3.12: other bits than before."""
    return functools.reduce(operator.add, values, 0.0)


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _float(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
