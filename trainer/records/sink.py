"""What a place for records must offer, and what keeps its failures from the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Protocol

Record = dict[str, object]  # JSON values; "kind" is step or evaluation, "step" an int


class Sink(Protocol):
    def begin(self, step: int) -> None:
        """An attempt goes on after `step`: later ones that were written before will come again."""

    def write(self, record: Record) -> None: ...

    def close(self, wait_s: float) -> None:
        """No more is to be written here for now; `begin` may follow. Takes `wait_s` at most for what is on its way."""


class GuardedSink:
    """A sink whose failures cost one line in the log, again only after it has worked in between."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._make = make
        self._sink: Sink | None = None
        self._failing = False

    def begin(self, step: int) -> None:
        self._guard(lambda: self._made().begin(step))

    def write(self, record: Record) -> None:
        self._guard(lambda: self._made().write(record))

    def close(self, wait_s: float) -> None:
        sink = self._sink
        if sink is not None:
            self._guard(lambda: sink.close(wait_s))

    def _made(self) -> Sink:
        self._sink = self._sink or self._make()
        return self._sink

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
            self._failing = False
        except Exception as error:
            if not self._failing:
                print(f"{self._name}: {error}; training goes on without", file=sys.stderr, flush=True)
            self._failing = True


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: None for them."""
    return value if math.isfinite(value) else None
