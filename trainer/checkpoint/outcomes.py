"""What becomes of a save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Committed:
    """A checkpoint is visible and durable. digest: of its manifest. write_s: from the begin of the save to the commit."""

    step: int
    path: str
    digest: str
    write_s: float


@dataclass(frozen=True)
class SavedLocally:
    """This rank's shard is on its node's disk. Whether all shards are, the ranks find out when they need them."""

    step: int
    path: str
    write_s: float


@dataclass(frozen=True)
class SaveFailed:
    """This step has no checkpoint of this attempt, or (not durable) none in the local tier; older ones are untouched."""

    step: int
    why: str
    durable: bool = True


@dataclass(frozen=True)
class Warned:
    """A checkpoint is committed, but something after that went wrong: it did not prove, or older ones stay."""

    step: int
    why: str


Outcome: TypeAlias = Committed | SavedLocally | SaveFailed | Warned
