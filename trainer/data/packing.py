"""Packs whole documents into instances: best fit decreasing, as OLMo-core's NumpyPackedFSLDataset packs SFT data.

The algorithm is that of "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830, appendix B): documents from the
longest to the shortest, each into the fullest instance that still has room, the oldest of equals. Each token file is
packed by itself. OLMo-core sorts with an unstable sort; here documents of equal length keep their order in the file, so
the packing is one for all machines.
"""

from __future__ import annotations

from collections import deque

import numpy as np


def document_spans(tokens: np.ndarray, eos_id: int, sequence_length: int, long_documents: str) -> np.ndarray:
    """int64 (documents, 2): [begin, end) of each document in `tokens` (N,), EOS included.

    What follows the last EOS is no document. Longer ones than an instance are cut ("truncate": the rest is dropped;
    "fragment": it makes further ones).
    """
    ends = np.flatnonzero(tokens == eos_id) + 1
    begins = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    if long_documents == "truncate":
        return np.stack([begins, np.minimum(ends, begins + sequence_length)], axis=1)
    pieces = -(-(ends - begins) // sequence_length)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(begins, pieces) + (np.arange(pieces.sum()) - first) * sequence_length
    return np.stack([starts, np.minimum(starts + sequence_length, np.repeat(ends, pieces))], axis=1)


def pack(lengths: np.ndarray, sequence_length: int) -> list[list[int]]:
    """Documents of each instance, by their index in `lengths`, int (documents,), none above `sequence_length`."""
    instances: list[list[int]] = []
    with_room: dict[int, deque[int]] = {}  # free tokens -> instances, oldest first
    free_sizes = 0  # bit n is set while some instance has n tokens free
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        fitting = free_sizes >> length
        if fitting:
            room = (fitting & -fitting).bit_length() - 1 + length
            queue = with_room[room]
            instance = queue.popleft()
            if not queue:
                free_sizes ^= 1 << room
        else:
            room, instance = sequence_length, len(instances)
            instances.append([])
        instances[instance].append(document)
        left = room - length
        if left:
            queue = with_room.setdefault(left, deque())
            queue.append(instance)
            free_sizes |= 1 << left
    return instances


def packed_index(spans: np.ndarray, sequence_length: int) -> np.ndarray:
    """int64: the number of instances n, n + 1 offsets into the pieces, then each piece's begin and end."""
    instances = pack(spans[:, 1] - spans[:, 0], sequence_length)
    counts = np.array([len(each) for each in instances], dtype=np.int64)
    order = np.array([document for each in instances for document in each], dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return np.concatenate(([len(instances)], offsets, spans[order].reshape(-1))).astype(np.int64)
