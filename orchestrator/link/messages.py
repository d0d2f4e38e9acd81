"""What a node supervisor and the daemon say to each other, after both have proved the cluster key.

Frames are msgspec JSON with a 4-byte big-endian length, at most 4 MiB. Versioned by `LINK_VERSION` in the hello.

    supervisor -> daemon   Hello, Beat, Report, WorkerStatuses, LogChunk
    daemon -> supervisor   Order, Ack, Beat, Inject, ReadLog, Shutdown
"""

from __future__ import annotations

import msgspec

from orchestrator.recovery.commands import AnyCommand
from orchestrator.recovery.events import AnyEvent

LINK_VERSION = 1
BEAT_INTERVAL_S = 0.25


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Latest known of one trainer; a newer one replaces it. `age_ns` is how long ago the trainer said it."""

    run: str
    attempt: int
    rank: int
    pid: int
    phase: str  # starting, init, restore, compile, train, checkpoint, evaluate, waiting, done
    step: int = 0
    first_step: int = 0  # first step completed in this attempt; 0: none yet
    first_step_age_ns: int = 0
    source: str = ""  # init, peers, checkpoint: whence the state of this attempt came
    restored_step: int = -1
    detail: str = ""  # path of the checkpoint, when that was the source
    loss: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    skipped: int = 0  # steps that did not change the weights, since the run began
    step_ms: float = 0.0
    data_ms_total: float = 0.0  # since the trainer joined the attempt
    checkpoint_ms_total: float = 0.0
    age_ns: int = 0


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    version: int
    node: str
    boot_id: str  # new for each life of the supervisor's node (machine boot, or raylet in simulation)
    gpus: int
    pid: int
    host: str
    epoch: int  # highest obeyed so far
    workers: tuple[WorkerStatus, ...] = ()
    stores: tuple[tuple[str, int], ...] = ()  # live rendezvous stores, as (run, attempt)
    simulated: bool = False
    life: str = ""  # random, of this supervisor process: cursors count within it


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    sent_ns: int


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """An event of the core, kept by the supervisor until `cursor` is acknowledged. Its times are 0; ages say them."""

    cursor: int
    event: AnyEvent
    age_ns: int  # since the supervisor observed it
    fault_age_ns: int = 0  # since it began, where known


class WorkerStatuses(msgspec.Struct, frozen=True, kw_only=True, tag="statuses"):
    workers: tuple[WorkerStatus, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """A command with the daemon's epoch. `workload` is the run's launch description, for JoinGang and StartStore."""

    epoch: int
    command: AnyCommand
    workload: dict | None = None


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    cursor: int  # all up to this one are durable


class Inject(msgspec.Struct, frozen=True, kw_only=True, tag="inject"):
    """A fault test: xid, kill_worker, stop_worker, kill_raylet, stop_raylet, kill_supervisor, and its details.

    Answer: a Report of FaultInjected (or CommandFailed with command "inject" when it can't be done).
    """

    fault: str
    details: dict[str, int | str] = {}
    who: str = "operator"


class ReadLog(msgspec.Struct, frozen=True, kw_only=True, tag="read_log"):
    request: int
    run: str
    rank: int
    attempt: int  # 0: newest
    offset: int
    limit: int = 65536


class LogChunk(msgspec.Struct, frozen=True, kw_only=True, tag="log_chunk"):
    request: int
    attempt: int
    text: str
    next_offset: int
    error: str = ""


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """The cluster goes down: end trainers, standby, monitor and yourself."""

    why: str


ToDaemon = Hello | Beat | Report | WorkerStatuses | LogChunk
ToSupervisor = Order | Ack | Beat | Inject | ReadLog | Shutdown
