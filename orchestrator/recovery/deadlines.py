"""A persistent leftist heap: push and pop make a new heap in O(log n) and share the rest with the old one.

A heap is None or (rank, key, left, right), where rank is the length of the right spine (Crane 1972; Okasaki, Purely
Functional Data Structures, section 3.1).
"""

from __future__ import annotations

Key = tuple[int, str]  # (deadline_ns, run)
Heap = tuple | None


def merge(a: Heap, b: Heap) -> Heap:
    if a is None:
        return b
    if b is None:
        return a
    if b[1] < a[1]:
        a, b = b, a
    left, right = a[2], merge(a[3], b)
    if left is None or (right is not None and left[0] < right[0]):
        left, right = right, left
    return (1 if right is None else right[0] + 1, a[1], left, right)


def push(heap: Heap, key: Key) -> Heap:
    return merge(heap, (1, key, None, None))


def top(heap: Heap) -> Key | None:
    return None if heap is None else heap[1]


def pop(heap: Heap) -> Heap:
    """Without its least key. The empty heap stays empty."""
    return None if heap is None else merge(heap[2], heap[3])
