"""Finds instances that repeat themselves, which would teach a model to loop."""

from __future__ import annotations

import numpy as np

MAX_PERIOD = 13  # both thresholds are OLMo-core's instance filter
MIN_TIMES = 32


def is_repetitive(tokens: np.ndarray, max_period: int = MAX_PERIOD, min_times: int = MIN_TIMES) -> bool:
    """Whether some n-gram of at most `max_period` tokens stands `min_times` times in a row in `tokens`, shape (T,).

    A run with period p is a stretch in which each token equals the one p before; stretch + p tokens hold the n-gram
    (stretch + p) // p times.
    """
    return any(
        _longest_run(tokens[period:] == tokens[:-period]) >= (min_times - 1) * period
        for period in range(1, max_period + 1)
        if len(tokens) >= min_times * period
    )


def _longest_run(same: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
