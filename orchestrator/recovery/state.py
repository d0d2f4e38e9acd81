"""The whole state of the orchestrator, immutable. Only `decide` makes a new one.

Maps are persistent (`immutables.Map`), so that an event costs the same with ten nodes and ten thousand.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from immutables import Map

from orchestrator.recovery.events import Finding, RunPlan
from orchestrator.recovery.policy import Policy


class RunPhase(StrEnum):
    PENDING = "pending"  # queued: no place yet, or behind another run
    CHECKING = "checking"  # placed; its nodes are probed
    STARTING = "starting"  # store, processes, groups, first step of the first attempt
    RUNNING = "running"
    RECOVERING = "recovering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class NodeHealth(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # not placed on; watched
    QUARANTINED = "quarantined"
    REMEDIATING = "remediating"
    PROBATION = "probation"  # being probed before it is healthy again
    RETIRED = "retired"


class RecoveryPhase(StrEnum):
    """Parts of a recovery (and of a start), in order; each has a deadline in the policy."""

    DETECT = "detect"
    DECIDE = "decide"
    ISOLATE = "isolate"
    PLACE = "place"
    FORM = "form"
    RESTORE = "restore"
    FIRST_STEP = "first_step"


class Rung(StrEnum):
    IN_PLACE = "in_place"
    PEER_MEMORY = "peer_memory"  # not built yet
    CHECKPOINT = "checkpoint"
    SHRINK = "shrink"  # not built yet


class Cause(StrEnum):
    """To what a second of a run belongs. Exactly one at any time."""

    TRAINING = "training"
    START = "start"
    CHECKPOINT_STALL = "checkpoint_stall"
    DATA_STALL = "data_stall"
    DETECT = "detect"
    DECIDE = "decide"
    ISOLATE = "isolate"
    PLACE = "place"
    FORM = "form"
    RESTORE = "restore"
    FIRST_STEP = "first_step"
    REDONE_STEPS = "redone_steps"
    WAITING_FOR_CAPACITY = "waiting_for_capacity"
    IDLE = "idle"  # on purpose: backing off


class Hold(StrEnum):
    """Why the stage PLACE does not go on."""

    NONE = ""
    BACKOFF = "backoff"
    CAPACITY = "capacity"


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Integer nanoseconds by cause: sum(accounts) == since_ns - opened_ns, exactly, after every event.

    Stalls reported since `since_ns` are kept beside the open interval and split from it when it is charged, so that an
    interval can still be cut at a fault that began in the middle of it.
    """

    opened_ns: int
    since_ns: int  # up to here everything is charged
    cause: Cause  # what runs since then
    accounts: Map[str, int] = Map()
    closed: bool = False
    checkpoint_stall_ns: int = 0
    data_stall_ns: int = 0


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What an isolation is about. A cause of higher rank (incident.RANKS) replaces it while the isolation lasts."""

    cause: str
    node: str = ""
    rank: int = -1
    sentence: str = ""


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One disturbance of a run, from the fault to the first step that all ranks completed after it.

    `marks` holds (phase, begin in ns) in order; a phase that was entered again (a failure during the recovery) appears
    again, and its seconds add up. A second fault during a recovery joins this incident (`also` names it).
    """

    id: str
    run: str
    cause: str  # worker_exited, worker_fault, worker_hung, node_lost, store_lost, xid_48, ...
    node: str
    rank: int = -1
    rung: Rung = Rung.IN_PLACE
    reason: str = ""
    fault_at_ns: int
    detected_at_ns: int
    marks: tuple[tuple[str, int], ...] = ()
    rounds: int = 1  # isolations it took: each ends one attempt
    ended_at_ns: int = 0  # 0: not over
    regained_at_ns: int = 0  # when the highest step of before was reached again
    step_before: int = 0  # highest step completed by all ranks before the fault
    restored_step: int = -1
    also: tuple[str, ...] = ()
    outcome: str = ""  # recovered, failed, cancelled; empty while it lasts

    @property
    def steps_lost(self) -> int:
        return max(0, self.step_before - self.restored_step) if self.restored_step >= 0 else 0

    def phases_ns(self) -> dict[str, int]:
        """Nanoseconds by phase; they sum to ended_at_ns - fault_at_ns once the incident is over."""
        out: dict[str, int] = {}
        ends = [begin for _, begin in self.marks[1:]] + [self.ended_at_ns or self.marks[-1][1]] if self.marks else []
        for (phase, begin), end in zip(self.marks, ends, strict=True):
            out[phase] = out.get(phase, 0) + end - begin
        return out


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    health: NodeHealth = NodeHealth.HEALTHY
    present: bool = True  # its supervisor can be reached (or may be back: loss is a verdict)
    gpus: int = 0
    boot_id: str = ""
    run: str = ""  # the run whose gang it is part of; empty: a spare
    reason: str = ""  # why it is in this health
    since_ns: int = 0  # when health, presence or membership last changed
    findings: tuple[Finding, ...] = ()  # latest that matter
    failures_ns: tuple[int, ...] = ()  # times of trainer failures blamed on it, in the policy's window
    injected_at_ns: int = 0  # a fault test began here and no incident has taken it yet
    seconds_ns: Map[str, int] = Map()  # time up to since_ns by health, "in_run" or "absent"


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    plan: RunPlan
    phase: RunPhase = RunPhase.PENDING
    reason: str = ""  # why it is in this phase
    submitted_ns: int = 0
    attempt: int = 0  # 0 until it is placed; raised by each placement from the queue and at the end of each isolation
    stage: RecoveryPhase | None = None  # while starting or recovering
    stage_since_ns: int = 0
    deadline_ns: int = 0  # 0: none
    # Node of each node index, empty where one is missing; index i holds ranks [i * n, (i + 1) * n), n = ranks_per_node.
    placement: tuple[str, ...] = ()
    ran_on: tuple[str, ...] = ()  # the last complete placement, kept after the end: there are its logs
    store: tuple[str, str, int] | None = None  # node, host, port; port 0 until it listens
    restore: str = "checkpoint"
    rung: Rung = Rung.CHECKPOINT
    waiting: frozenset[int] = frozenset()  # ranks of whom the current stage still expects a word (isolate)
    probing: frozenset[str] = frozenset()  # nodes whose preflight is awaited
    stopping: frozenset[str] = frozenset()  # nodes, in the gang or just put out of it, whose trainers are being ended
    faulted: frozenset[int] = (
        frozenset()
    )  # ranks that reported an error in this isolation: their end is no further news
    trouble: Trouble | None = None  # what the present isolation is about
    hold: Hold = Hold.NONE
    holders: Map[int, int] = Map()  # rank -> step, of survivors that left with their state
    missing: frozenset[int] = (
        frozenset()
    )  # ranks that a node lacked at its last connection; `deadline_ns` runs for them
    completed: frozenset[int] = frozenset()  # ranks that ended with every step done
    step: int = 0  # highest step known completed by all ranks, in any attempt
    running_since_ns: int = 0  # begin of the last interval of training: no fault is dated before it
    running_cause: Cause = Cause.TRAINING  # to what that interval was charged
    last_progress_step: int = 0  # `step` at the end of the last recovery
    barren_recoveries: int = 0  # recoveries in a row without a new step
    recoveries: int = 0
    checkpoint_step: int = -1
    checkpoint_path: str = ""
    incident: Incident | None = None
    incidents: tuple[Incident, ...] = ()  # ended ones
    ledger: Ledger
    finished_ns: int = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    policy: Policy = Policy()
    epoch: int = 0
    at_ns: int = 0  # time of the last event
    nodes: Map[str, NodeState] = Map()
    runs: Map[str, RunState] = Map()
    queue: tuple[str, ...] = ()  # runs that wait for nodes: first those that hold some, then by priority, then by age
    free: Map[str, None] = Map()  # placeable nodes in no run: a persistent set
    holding: Map[str, int] = Map()  # run -> how many nodes it holds
    quarantined: int = 0  # how many nodes are quarantined, in repair or on probation, for the breaker
    deadlines: tuple | None = None  # persistent heap of (deadline_ns, run); its top is never stale
    incidents: int = 0  # how many were opened, for their ids


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` says why in one sentence, also when nothing is done."""

    state: State
    commands: tuple = ()
    reason: str
