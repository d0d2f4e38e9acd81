"""Named points of a step at which tests strike."""

from __future__ import annotations

from typing import Protocol


class Hooks(Protocol):
    def at(self, point: str, step: int) -> None:
        """Called at forward, backward, before_vote, in_vote, after_vote, optimizer and after_step, in this order.

        A step that is tried again comes to the points up to after_vote once more. In an evaluation after it: evaluate, at
        its start and then once a second.
        """


class NoHooks:
    def at(self, point: str, step: int) -> None:
        return
