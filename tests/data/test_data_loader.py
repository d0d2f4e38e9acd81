"""The prefetcher: order, restarts, errors, and never a thread left waiting."""

from __future__ import annotations

import threading

import pytest

from trainer.data.errors import DataError, PrefetcherStoppedError
from trainer.data.loader import Prefetcher


class SlowDataset:
    """Loads batch n when `release` allows; records who was asked."""

    def __init__(self) -> None:
        self.release = threading.Semaphore(0)
        self.asked: list[tuple[int, int, int]] = []

    def batch(self, step_index: int, rank: int, world: int) -> tuple[int, int, int]:
        self.asked.append((step_index, rank, world))
        self.release.acquire()
        return self.asked[-1]


@pytest.fixture
def plain(dataset):
    return dataset(range(64))


@pytest.fixture
def prefetcher(plain):
    prefetcher = Prefetcher(plain, depth=2)
    yield prefetcher
    prefetcher.stop()


def test_batches_come_in_order_as_the_dataset_gives_them(prefetcher, plain):
    prefetcher.start(3)
    for step in range(3, 10):
        batch, waited_ms = prefetcher.next()
        assert batch.step_index == step
        assert batch.tokens.tolist() == plain.batch(step).tokens.tolist()
        assert waited_ms >= 0


def test_it_starts_again_at_any_index_for_any_world(prefetcher, plain):
    prefetcher.start(5)
    prefetcher.next()
    prefetcher.start(2, rank=1, world=2)
    batch, _ = prefetcher.next()
    assert batch.step_index == 2
    assert batch.tokens.tolist() == plain.batch(2, 1, 2).tokens.tolist()
    prefetcher.stop()
    prefetcher.start(0)
    assert prefetcher.next()[0].step_index == 0


def test_it_loads_no_further_than_its_depth():
    slow = SlowDataset()
    prefetcher = Prefetcher(slow, depth=2)
    prefetcher.start(0)
    for _ in range(10):
        slow.release.release()
    assert prefetcher.next()[0] == (0, 0, 1)
    prefetcher.stop()
    assert len(slow.asked) <= 1 + 2 + 1  # taken, ready, in the thread's hand


def test_an_error_of_loading_reaches_the_caller(dataset):
    prefetcher = Prefetcher(dataset([*range(15), 999], batch_sequences=4))
    prefetcher.start(0)
    with pytest.raises(DataError, match="token 999"):
        prefetcher.next()
    with pytest.raises(PrefetcherStoppedError):
        prefetcher.next()


def test_stop_frees_a_waiting_caller():
    slow = SlowDataset()
    prefetcher = Prefetcher(slow)
    prefetcher.start(0)
    outcome: list[type] = []

    def take() -> None:
        try:
            prefetcher.next()
        except PrefetcherStoppedError as error:
            outcome.append(type(error))

    taker = threading.Thread(target=take)
    taker.start()
    prefetcher.stop()
    taker.join(30)
    slow.release.release()
    assert outcome == [PrefetcherStoppedError]


def test_a_stopped_or_never_started_one_says_so(prefetcher):
    with pytest.raises(PrefetcherStoppedError, match="isn't started"):
        prefetcher.next()
    prefetcher.start(0)
    prefetcher.stop()
    prefetcher.stop()
    with pytest.raises(PrefetcherStoppedError):
        prefetcher.next()
