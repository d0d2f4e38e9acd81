"""Everything that `decide` can ask of a cluster.

Commands are idempotent and fenced: a supervisor obeys the highest epoch it has seen and, for each run, no attempt older
than the last. Their outcomes come back as events. They are sent again after a daemon's restart.
"""

from __future__ import annotations

import msgspec

from orchestrator.recovery.events import _kind


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=_kind):
    node: str


class ProbeNode(Command, frozen=True, kw_only=True):
    """Check the node actively. Answer: NodeProbed with the same purpose, run and attempt."""

    purpose: str  # "preflight" or "probation"
    run: str = ""
    attempt: int = 0


class StartStore(Command, frozen=True, kw_only=True):
    """Start the attempt's rendezvous store on this node. Answer: StoreReady."""

    run: str
    attempt: int


class JoinGang(Command, frozen=True, kw_only=True):
    """Bring these ranks into the attempt: live trainers of the run are told to join, missing ones are forked first.

    `restore` is "checkpoint" (newest proven one, a fresh state when there is none) or "peers" (ranks that hold the
    state give it to those that do not; when a shard has no holder left, all fall back to the checkpoint). Stores of
    older attempts of the run on this node end. Processes that an earlier command ends here are gone before new ones
    fork.
    """

    run: str
    attempt: int
    ranks: tuple[int, ...]
    world_size: int
    replicas: int
    shards: int
    store_host: str
    store_port: int
    restore: str


class LeaveGang(Command, frozen=True, kw_only=True):
    """Trainers of the run on this node free themselves from the attempt and wait.

    Answers, with this attempt even from a trainer that had not joined it yet: WorkerLeft or WorkerExited for each.
    """

    run: str
    attempt: int
    why: str


class StopWorkers(Command, frozen=True, kw_only=True):
    """End the run's trainers and store on this node that are of this attempt or older.

    They get `grace_s` seconds after a polite stop, then SIGKILL. Answers: WorkerExited for each.
    """

    run: str
    attempt: int
    grace_s: float
    why: str


AnyCommand = ProbeNode | StartStore | JoinGang | LeaveGang | StopWorkers
