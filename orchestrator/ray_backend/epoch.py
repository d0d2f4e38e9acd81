"""The epoch: which daemon commands. Kept in a small detached Ray actor, raised by compare-and-set.

A supervisor obeys the highest epoch it has seen, so a daemon that lost the race can still talk, but nobody listens.
"""

from __future__ import annotations

from typing import Any

import ray

ACTOR_NAME = "epoch"


@ray.remote(num_cpus=0, max_restarts=-1)
class EpochRegister:
    """Holds the highest epoch taken. Restarted empty (its process died), it is told the daemon's last one again."""

    def __init__(self) -> None:
        self._epoch = 0

    def compare_and_set(self, expected: int, new: int) -> int:
        """Sets the epoch to `new` when it is `expected`. Returns the epoch that holds afterwards."""
        if self._epoch == expected and new > expected:
            self._epoch = new
        return self._epoch

    def current(self) -> int:
        return self._epoch


def take(at_least: int, namespace: str, timeout_s: float = 30.0) -> int:
    """Takes an epoch above `at_least` (the last that this daemon's journal knows) and above any other's.

    Returns the epoch taken. A daemon that runs this at the same moment gets another one.
    """
    register = _register(namespace)
    while True:
        seen: int = ray.get(register.current.remote(), timeout=timeout_s)
        wanted = max(seen, at_least) + 1
        if ray.get(register.compare_and_set.remote(seen, wanted), timeout=timeout_s) == wanted:
            return wanted


def _register(namespace: str) -> Any:
    return EpochRegister.options(  # type: ignore[attr-defined]
        name=ACTOR_NAME, namespace=namespace, lifetime="detached", get_if_exists=True
    ).remote()
