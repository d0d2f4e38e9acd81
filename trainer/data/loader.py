"""Loads batches ahead of the training loop, so that waiting for data is seen and measured."""

from __future__ import annotations

import threading
import time
from collections import deque

from trainer.data.dataset import Batch, TokenDataset
from trainer.data.errors import PrefetcherStoppedError


class Prefetcher:
    """A background thread that holds up to `depth` batches ready. Start, stop and start again at any batch index."""

    def __init__(self, dataset: TokenDataset, depth: int = 2) -> None:
        self._dataset = dataset
        self._depth = depth
        self._life: _Life | None = None

    def start(self, step_index: int, rank: int = 0, world: int = 1) -> None:
        """Begin at this global batch index for this rank of this world. A running life is stopped first."""
        self.stop()
        self._life = _Life(self._dataset, self._depth, step_index, rank, world)

    def next(self) -> tuple[Batch, float]:
        """(the next batch, milliseconds waited for it).

        Raises what loading raised (DataError, ...), and PrefetcherStoppedError when stopped, also from another thread.
        """
        life = self._life
        if life is None:
            raise PrefetcherStoppedError("the prefetcher isn't started")
        begin = time.monotonic()
        return life.next(), (time.monotonic() - begin) * 1e3

    def stop(self) -> None:
        """Drop the batches held ready. Returns at once: a thread caught in a slow read ends after it, unheard."""
        if self._life is not None:
            self._life.stop()
            self._life = None


class _Life:
    """From one start to its stop. A restart makes a new one, so a late thread can't mix its batches into the next."""

    def __init__(self, dataset: TokenDataset, depth: int, step_index: int, rank: int, world: int) -> None:
        self._depth = depth
        self._ready: deque[Batch | Exception] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        arguments = (dataset, step_index, rank, world)
        threading.Thread(target=self._run, args=arguments, name="prefetch", daemon=True).start()

    def next(self) -> Batch:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ready)
            if self._stopped:
                raise PrefetcherStoppedError("the prefetcher was stopped")
            item = self._ready.popleft()
            self._stopped = isinstance(item, Exception)
            self._changed.notify_all()
        if isinstance(item, Exception):
            raise item
        return item

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self, dataset: TokenDataset, step_index: int, rank: int, world: int) -> None:
        while self._has_room():
            try:
                item: Batch | Exception = dataset.batch(step_index, rank, world)
            except Exception as error:  # whatever it is, the caller of `next` gets it
                item = error
            with self._changed:
                self._ready.append(item)
                self._changed.notify_all()
            if isinstance(item, Exception):
                return
            step_index += 1

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
            return not self._stopped
