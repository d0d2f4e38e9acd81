"""Rows of the global order, epoch after epoch, shuffled in the background before they are needed.

At Olmo's scale (5.9T tokens, 724 million instances) an order is 2.9 GB and a minute of shuffling: it is computed once for all
processes that share the cache folder, and held in none of them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trainer.data.order import ORDER_RULE, locate, order_probe, shuffled
from trainer.data.shared_cache import ArrayFile, shared_array

SHARED_FROM = 1 << 20  # instances; a smaller order is 4 MB at most and shuffled in 20 ms
_AHEAD = 0.9  # of an epoch: then the next one is shuffled


class Epochs:
    """The order of `instances` for batches of `batch_sequences`. `folder`: None keeps every order in memory.

    For any thread.
    """

    def __init__(self, instances: int, batch_sequences: int, seed: int, folder: Path | None = None) -> None:
        self.batches_per_epoch = instances // batch_sequences
        self._instances, self._batch_sequences, self._seed = instances, batch_sequences, seed
        self._folder = folder if instances >= SHARED_FROM else None
        self._lock = threading.Lock()
        self._orders: dict[int, Future[ArrayFile | np.ndarray]] = {}
        self._worker = ThreadPoolExecutor(2, thread_name_prefix="shuffle")

    def begin(self, epoch: int = 1) -> None:
        """Start to shuffle this epoch, if nobody has. Returns at once."""
        self._order(epoch)

    def row(self, step_index: int) -> np.ndarray:
        """Instances of global batch `step_index`, uint32 (batch_sequences,). Waits while its epoch is shuffled."""
        epoch, row = locate(step_index, self.batches_per_epoch)
        order = self._order(epoch).result()
        if row >= _AHEAD * self.batches_per_epoch:
            self.begin(epoch + 1)
        return order[row * self._batch_sequences : (row + 1) * self._batch_sequences]

    def _order(self, epoch: int) -> Future[ArrayFile | np.ndarray]:
        with self._lock:
            if epoch not in self._orders:
                for other in [each for each in self._orders if each != epoch - 1]:
                    del self._orders[other]
                self._orders[epoch] = self._worker.submit(self._shuffle, epoch)
            return self._orders[epoch]

    def _shuffle(self, epoch: int) -> ArrayFile | np.ndarray:
        if self._folder is None:
            return shuffled(self._instances, self._seed, epoch)
        # The probe stands for NumPy's shuffle, which a later version may change.
        probe = order_probe(self._seed)[:16]
        name = f"order-rule{ORDER_RULE}-{probe}-seed{self._seed}-epoch{epoch}-of{self._instances}.u4"
        return shared_array(self._folder, name, np.dtype("<u4"), lambda: shuffled(self._instances, self._seed, epoch))
