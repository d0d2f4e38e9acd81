"""The persistent heap gives keys in order, and old versions stay as they were."""

from __future__ import annotations

import heapq

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recovery import deadlines

KEYS = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 50), st.sampled_from("abc"))))


def drain(heap: deadlines.Heap) -> list[deadlines.Key]:
    found = []
    while (key := deadlines.top(heap)) is not None:
        found.append(key)
        heap = deadlines.pop(heap)
    return found


@given(KEYS)
def test_it_is_a_heap_and_persistent(steps: list[tuple[int, str] | None]) -> None:
    heap, model = None, []
    versions = [(heap, [])]
    for key in steps:
        if key is None:
            heap = deadlines.pop(heap)
            if model:
                heapq.heappop(model)
        else:
            heap = deadlines.push(heap, key)
            heapq.heappush(model, key)
        versions.append((heap, sorted(model)))
    for version, expected in versions:
        assert drain(version) == expected


def test_the_right_spine_stays_short() -> None:
    heap = None
    for n in range(10_000):
        heap = deadlines.push(heap, (n * 7919 % 10_007, "run"))
    assert heap[0] <= 14  # rank <= log2(n + 1)
