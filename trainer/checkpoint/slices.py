"""Dim-0 slices: how FSDP2 shards a tensor, and how a wanted slice is put together from stored ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Slice:
    """Rows [offset, offset + length) of dimension 0. A tensor of dimension 0 is Slice(0, 1)."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def rows(shape: tuple[int, ...]) -> int:
    """Length of dimension 0; a tensor without dimensions counts as one row."""
    return shape[0] if shape else 1


def chunk(length: int, shards: int, shard: int) -> Slice:
    """Rows of shard `shard`, as torch.chunk and so FSDP2's Shard(0) cut them: ceil(length / shards) each, the last ones
    short or empty."""
    size = -(-length // shards)
    begin = min(shard * size, length)
    return Slice(begin, min(size, length - begin))


def parts(wanted: Slice, stored: Iterable[Slice]) -> list[tuple[Slice, Slice]]:
    """What to read to fill `wanted`, in order: (rows, counted within a stored slice's tensor; that stored slice).

    Raises ValueError when the stored slices leave rows of it open. Overlapping ones are read once.
    """
    found = []
    at = wanted.offset
    for piece in sorted(stored):
        if piece.length == 0 or piece.end <= at or at >= wanted.end:
            continue
        if piece.offset > at:
            break
        end = min(piece.end, wanted.end)
        found.append((Slice(at - piece.offset, end - at), piece))
        at = end
    if at < wanted.end:
        raise ValueError(f"rows {at} to {wanted.end} are stored nowhere")
    return found
