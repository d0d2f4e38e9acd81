"""The choice over both tiers is the same on every rank, and can be read by all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.choice import OFFERS, choose, common, pack, unpack
from trainer.checkpoint.local import SaveId

saves = st.builds(SaveId, st.integers(1, 9), st.integers(1, 2), st.sampled_from([1, 2**62 - 1]))
offers = st.lists(st.frozensets(saves, max_size=8), min_size=1, max_size=5)


@given(offers, st.none() | st.integers(1, 9))
def test_the_newest_that_every_rank_can_read(of_ranks, durable_step):
    chosen = choose(of_ranks, durable_step)
    shared = {save for save in of_ranks[0] if all(save in offered for offered in of_ranks)}
    if chosen is None:
        assert durable_step is None or all(save.step < durable_step for save in shared)
        assert shared == set() or durable_step is not None
    else:
        assert chosen in shared
        assert chosen.step == max(save.step for save in shared)
        assert durable_step is None or chosen.step >= durable_step


def test_shards_of_different_saves_of_a_step_are_not_mixed():
    one, other = SaveId(100, 3, 1), SaveId(100, 3, 2)
    assert choose([{one}, {other}], None) is None
    assert choose([{one, other}, {other}], 99) == other


def test_a_node_whose_disk_was_lost_takes_all_to_the_durable_tier():
    assert choose([{SaveId(200, 1, 7)}, set()], 100) is None
    assert common([{SaveId(200, 1, 7)}, set()]) == []


@given(st.frozensets(saves, max_size=30))
def test_offers_travel_as_integers(offered):
    values = pack(offered)
    assert len(values) == len(pack(()))
    assert all(0 <= value < 2**63 for value in values)
    assert unpack(values) == sorted(offered, reverse=True)[:OFFERS]
