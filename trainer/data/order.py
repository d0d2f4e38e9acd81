"""The global order of training instances: a function of seed and epoch alone, never of the world size.

The rule is that of OLMo-core's `NumpyFSLDataLoader`: a PCG64 shuffle of an epoch's instances (epochs count from 1), the
tail that fills no batch dropped, rows of one global batch; rank r of n takes every n-th instance from r on.

NumPy doesn't promise that a later version shuffles alike (NEP 19), so the data fingerprint carries `order_probe`.
"""

from __future__ import annotations

import hashlib

import numpy as np

ORDER_RULE = 1  # part of the data fingerprint: a changed rule must not resume an old run silently


def shuffled(instances: int, seed: int, epoch: int) -> np.ndarray:
    """All instance indices of one epoch, uint32 (instances,): 4 bytes an instance, 60 s for 724 million of them.

    Raises ValueError when `instances` doesn't fit uint32, or when epochs don't count from 1.
    """
    if not 0 < instances < np.iinfo(np.uint32).max:
        raise ValueError(f"{instances} instances can't be ordered")
    if epoch < 1:
        raise ValueError(f"epochs count from 1, not {epoch}")
    order = np.arange(instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(order)
    return order


def epoch_order(instances: int, batch_sequences: int, seed: int, epoch: int) -> np.ndarray:
    """Instance indices of one epoch as uint32 of shape (batches, batch_sequences), its tail dropped.

    Raises ValueError as `shuffled` does, and when the instances fill no batch.
    """
    if not 0 < batch_sequences <= instances:
        raise ValueError(f"{instances} instances can't be ordered into batches of {batch_sequences}")
    batches = instances // batch_sequences
    return shuffled(instances, seed, epoch)[: batches * batch_sequences].reshape(batches, batch_sequences)


def order_probe(seed: int) -> str:
    """Hexadecimal SHA-256 of a small epoch's order: differs where this seed is shuffled otherwise."""
    return hashlib.sha256(epoch_order(1024, 1, seed, 1).astype("<u4").tobytes()).hexdigest()


def locate(step_index: int, batches_per_epoch: int) -> tuple[int, int]:
    """(epoch, row in it) of the global batch with this index; indices count from 0, epochs from 1."""
    if step_index < 0:
        raise ValueError(f"batch index {step_index} is negative")
    epoch, row = divmod(step_index, batches_per_epoch)
    return epoch + 1, row


def rank_share(row: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The instances of one rank, in order. Raises ValueError when the batch can't be shared evenly."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not in a world of {world}")
    if len(row) % world:
        raise ValueError(f"a batch of {len(row)} sequences can't be shared evenly by {world} ranks")
    return row[rank::world]
