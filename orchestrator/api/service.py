"""What the HTTP API needs of the daemon. Nothing else of the daemon is visible to it.

All calls come from the API's event loop, except `state`, `now_ns` and `live`, which /metrics may call from a thread.
Methods that act return a sentence: what was decided and why. They raise the errors of `orchestrator.api.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from orchestrator.journal.entry import Entry
from orchestrator.recovery.state import State


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a submission: the run's id, what became of it, and what its author should know."""

    run: str
    reason: str
    warnings: tuple[str, ...] = ()


class LogText(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a rank's log. `next_offset` is the byte offset to ask for next; the same as asked at the end."""

    text: str
    next_offset: int
    attempt: int = 0


class Service(Protocol):
    def state(self) -> State:
        """The newest state."""

    def now_ns(self) -> int:
        """Nanoseconds of the controller's clock, the one of `State.at_ns`."""

    def entries(self, after: int, limit: int) -> Sequence[Entry]:
        """Journal entries with seq > `after`, oldest first, at most `limit`. May read the disk: called in a thread."""

    def last_seq(self) -> int:
        """seq of the newest journal entry; 0 when there is none."""

    async def wait_entry(self, after: int, timeout_s: float) -> None:
        """Return when there is an entry with seq > `after`, at once if there is one, or after `timeout_s`."""

    def live(self, run: str) -> dict[str, Any]:
        """What the run's workers said last, as `orchestrator.api.live.live_view` makes it; {} when nothing is known."""

    def spec(self, run: str) -> dict[str, Any]:
        """The run's spec without secrets (`RunSpec.public`); {} when it is not kept."""

    async def submit(self, text: str, file: str) -> Submitted:
        """Check and queue a run. `file` is the spec's absolute path. Raises SpecErrors."""

    async def cancel(self, run: str, who: str, why: str) -> str: ...

    async def quarantine(self, node: str, who: str, why: str) -> str: ...

    async def readmit(self, node: str, who: str, why: str) -> str: ...

    async def inject(self, node: str, fault: str, details: dict[str, int | str], who: str) -> str:
        """Begin a fault test on a node. `fault` and `details` are of `orchestrator.api.faults`."""

    async def read_log(self, run: str, rank: int, attempt: int, offset: int) -> LogText:
        """A piece of a rank's log from byte `offset`; attempt 0 is the newest."""

    async def shutdown(self) -> None:
        """Take the cluster down: trainers, supervisors, Ray, daemon. Returns once it has begun."""
