"""Which checkpoint a gang goes on from, over both tiers. Pure: every rank decides the same from what all have said."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

from trainer.checkpoint.local import SaveId

OFFERS = 16  # saves a rank offers; a local tier keeps a few
_FIELDS = len(SaveId._fields)


def common(offers: Sequence[Collection[SaveId]]) -> list[SaveId]:
    """The saves that every rank offers, newest first."""
    shared = set(offers[0]).intersection(*offers[1:]) if offers else set()
    return sorted(shared, reverse=True)


def choose(offers: Sequence[Collection[SaveId]], durable_step: int | None) -> SaveId | None:
    """The save of the local tiers to restore, or None: the durable one, where there is one.

    `offers`: for each rank, the saves of which it can read all that it needs. At equal steps the local tier is nearer.
    """
    newest = next(iter(common(offers)), None)
    if newest is None or (durable_step is not None and durable_step > newest.step):
        return None
    return newest


def pack(offers: Collection[SaveId]) -> list[int]:
    """The newest OFFERS as integers below 2^63, always as many."""
    newest = sorted(offers, reverse=True)[:OFFERS]
    values = list(chain.from_iterable(newest))
    return [len(newest), *values, *[0] * (OFFERS * _FIELDS - len(values))]


def unpack(values: Sequence[int]) -> list[SaveId]:
    count, *fields = values
    return [SaveId(*fields[at : at + _FIELDS]) for at in range(0, count * _FIELDS, _FIELDS)]
