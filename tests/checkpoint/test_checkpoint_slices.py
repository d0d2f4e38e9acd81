"""Dim-0 arithmetic against torch.chunk and against rows copied one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.slices import Slice, chunk, parts, rows


@given(length=st.integers(0, 50), shards=st.integers(1, 12))
def test_chunk_cuts_as_torch_does(length, shards):
    expected = [piece.tolist() for piece in torch.arange(length).chunk(shards)] if length else []
    expected += [[]] * (shards - len(expected))
    cut = [chunk(length, shards, shard) for shard in range(shards)]
    assert [list(range(piece.offset, piece.end)) for piece in cut] == expected


@given(data=st.data(), length=st.integers(1, 40), shards=st.integers(1, 9))
def test_parts_give_exactly_the_wanted_rows(data, length, shards):
    begin = data.draw(st.integers(0, length))
    wanted = Slice(begin, data.draw(st.integers(0, length - begin)))
    stored = data.draw(st.permutations([chunk(length, shards, shard) for shard in range(shards)]))
    read = [piece.offset + part.offset + i for part, piece in parts(wanted, stored) for i in range(part.length)]
    assert read == list(range(wanted.offset, wanted.end))


@given(lengths=st.lists(st.integers(1, 4), min_size=2, max_size=6), missing=st.integers(0, 5))
def test_a_gap_is_never_read_over(lengths, missing):
    stored, at = [], 0
    for length in lengths:
        stored.append(Slice(at, length))
        at += length
    gap = stored.pop(missing % len(stored))
    with pytest.raises(ValueError, match=f"rows {gap.offset} to {at} are stored nowhere"):
        parts(Slice(0, at), stored)


def test_overlapping_pieces_are_read_once():
    read = parts(Slice(0, 6), [Slice(0, 4), Slice(2, 4), Slice(0, 1)])
    assert [part.length for part, _ in read] == [1, 3, 2]


def test_a_tensor_without_dimensions_is_one_row():
    assert rows(()) == 1
    assert rows((0, 4)) == 0
