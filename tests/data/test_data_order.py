"""The global order: the published rule, and independence of the world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import epoch_order, locate, order_probe, rank_share

sizes = st.integers(1, 200)


def test_order_is_a_pcg64_shuffle_of_seed_plus_epoch():
    expected = np.arange(23, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(34521 + 2)).shuffle(expected)
    order = epoch_order(23, 5, seed=34521, epoch=2)
    assert order.dtype == np.uint32
    assert order.tolist() == expected[:20].reshape(4, 5).tolist()


def test_golden_order_guards_against_a_numpy_that_shuffles_otherwise():
    assert epoch_order(10, 5, seed=34521, epoch=1).tolist() == [[5, 9, 8, 4, 0], [6, 1, 2, 7, 3]]


@given(instances=sizes, batch=sizes, seed=st.integers(0, 2**40), epoch=st.integers(1, 5))
def test_each_instance_comes_at_most_once_and_only_a_tail_is_dropped(instances, batch, seed, epoch):
    if batch > instances:
        with pytest.raises(ValueError, match="can't be ordered"):
            epoch_order(instances, batch, seed, epoch)
        return
    seen = epoch_order(instances, batch, seed, epoch).reshape(-1).tolist()
    assert len(set(seen)) == len(seen) == instances - instances % batch
    assert max(seen) < instances


@given(batch=sizes, world=st.integers(1, 16))
def test_ranks_of_any_world_share_the_same_batch(batch, world):
    row = np.arange(batch, dtype=np.uint32)
    if batch % world:
        with pytest.raises(ValueError, match="evenly"):
            rank_share(row, 0, world)
        return
    shares = [rank_share(row, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {batch // world}
    assert np.stack(shares, axis=1).reshape(-1).tolist() == row.tolist()


@given(step=st.integers(0, 10**9), batches=st.integers(1, 10**6))
def test_locate_counts_epochs_from_one(step, batches):
    epoch, row = locate(step, batches)
    assert epoch >= 1
    assert 0 <= row < batches
    assert (epoch - 1) * batches + row == step


def test_epochs_and_seeds_differ():
    first, second = epoch_order(100, 10, 7, 1), epoch_order(100, 10, 7, 2)
    assert first.tolist() != second.tolist()
    assert second.tolist() == epoch_order(100, 10, 8, 1).tolist()  # the rule adds them
    assert order_probe(7) != order_probe(8)


@pytest.mark.parametrize(
    "call", [lambda: locate(-1, 5), lambda: epoch_order(10, 5, 1, 0), lambda: rank_share(np.arange(4), 4, 4)]
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"negative|count from 1|not in a world"):
        call()
