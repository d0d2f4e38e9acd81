"""Repetition: a period of at most 13, seen at least 32 times in a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.repetition import is_repetitive


def by_definition(tokens: list[int], max_period: int, min_times: int) -> bool:
    return any(
        tokens[start : start + period] * min_times == tokens[start : start + period * min_times]
        for period in range(1, max_period + 1)
        for start in range(len(tokens) - period * min_times + 1)
    )


@given(tokens=st.lists(st.integers(0, 2), max_size=40), period=st.integers(1, 4), times=st.integers(2, 5))
def test_agrees_with_the_definition(tokens, period, times):
    assert is_repetitive(np.array(tokens, dtype=np.int64), period, times) == by_definition(tokens, period, times)


@pytest.mark.parametrize(
    ("period", "times", "found"), [(1, 32, True), (1, 31, False), (13, 32, True), (13, 31, False), (14, 40, False)]
)
def test_thresholds_of_the_recipe(period, times, found):
    tokens = np.concatenate([[900, 901], np.tile(np.arange(period), times), [902]])
    assert is_repetitive(tokens) is found
