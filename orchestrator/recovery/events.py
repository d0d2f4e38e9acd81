"""Everything that can happen to a cluster, as seen by `decide`.

Events are verdicts, outcomes and operator commands; beats and progress are folded by detectors
before they get here. All are immutable and journaled as JSON, tagged by `kind`.

Rules of the file:
- `at_ns` is the controller's clock in nanoseconds, stamped when the controller takes the event; it never goes back.
- `observed_at_ns` is when the cluster first saw it, `fault_at_ns` when it began, both on the same clock; 0 is unknown.
- Events of a run carry its attempt; `decide` drops those of an older attempt with a reason.
- Any event may arrive twice or late: after a daemon's restart, supervisors send again what was not acknowledged.
"""

from __future__ import annotations

import msgspec

from orchestrator.recovery.policy import Policy


def _kind(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of a health check about a node or one of its GPUs.

    `severity` is info, warning, error or fatal. `action` is what the check recommends: none, watch,
    restart_application, reset_gpu, drain_and_reset, reboot_node, restart_fabric_manager, replace, inspect. `gpu` is -1
    for the whole node.
    """

    check: str
    cause: str
    severity: str
    action: str
    sentence: str
    gpu: int = -1
    evidence: dict[str, str] = {}


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the core needs to know of a run's spec. world size = nodes * ranks_per_node = replicas * shards."""

    nodes: int
    ranks_per_node: int = 1
    replicas: int
    shards: int
    priority: int = 0
    speaks_protocol: bool = True  # false: any torchrun command; every recovery starts its processes again
    max_recoveries: int = 100

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=_kind):
    at_ns: int = 0
    observed_at_ns: int = 0
    fault_at_ns: int = 0


class RunEvent(Event, frozen=True, kw_only=True, tag_field="kind", tag=_kind):
    run: str
    attempt: int = 0


# --- the system itself


class DaemonStarted(Event, frozen=True, kw_only=True):
    """A daemon took over the journal. Commands of the current phases are sent again, since the last may be lost."""

    epoch: int
    policy: Policy


class DeadlinePassed(Event, frozen=True, kw_only=True):
    """`next_deadline(state)` is reached."""


class CommandFailed(Event, frozen=True, kw_only=True):
    """A node could not carry a command out. `command` is its kind."""

    command: str
    node: str
    run: str
    attempt: int
    error: str


# --- operators


class RunSubmitted(RunEvent, frozen=True, kw_only=True):
    plan: RunPlan


class RunCancelled(RunEvent, frozen=True, kw_only=True):
    who: str
    why: str = ""


class NodeQuarantined(Event, frozen=True, kw_only=True):
    """An operator takes a node out."""

    node: str
    who: str
    why: str = ""


class NodeReadmitted(Event, frozen=True, kw_only=True):
    """An operator brings a node back: it goes through probation first."""

    node: str
    who: str
    why: str = ""


class NodeRetired(Event, frozen=True, kw_only=True):
    """An operator takes a node out for good."""

    node: str
    who: str
    why: str = ""


class FaultInjected(Event, frozen=True, kw_only=True):
    """A fault test began: `fault_at_ns` is its true time. The next incident of that node takes it as its start."""

    node: str
    fault: str
    who: str = "operator"


# --- nodes


class NodeReady(Event, frozen=True, kw_only=True):
    """A node's supervisor is connected. Level, not edge: sent at each connection.

    `workers` are the live trainers it holds, as (run, attempt, rank); `stores` its rendezvous stores, as (run, attempt).
    """

    node: str
    gpus: int
    boot_id: str
    workers: tuple[tuple[str, int, int], ...] = ()
    stores: tuple[tuple[str, int], ...] = ()


class NodeLost(Event, frozen=True, kw_only=True):
    """Verdict: the node can't be reached and its trainers are dead or will be."""

    node: str
    evidence: str


class NodeFindings(Event, frozen=True, kw_only=True):
    node: str
    findings: tuple[Finding, ...]


class NodeProbed(Event, frozen=True, kw_only=True):
    """Answer to ProbeNode: a preflight before a start, or the probation of a node."""

    node: str
    purpose: str  # "preflight" or "probation"
    ok: bool
    run: str = ""
    attempt: int = 0
    findings: tuple[Finding, ...] = ()


# --- a run's attempt


class StoreReady(RunEvent, frozen=True, kw_only=True):
    node: str
    host: str
    port: int


class StoreLost(RunEvent, frozen=True, kw_only=True):
    node: str
    detail: str


class WorkerLeft(RunEvent, frozen=True, kw_only=True):
    """A trainer is out of the attempt, alive, and waits for the next join."""

    rank: int
    node: str
    step: int  # last step whose update is applied
    voted_step: int  # last step whose vote this rank completed; >= step
    holds_state: bool
    why: str = ""


class WorkerExited(RunEvent, frozen=True, kw_only=True):
    """A trainer's process ended. `completed` is true when it had said bye with all steps done.

    Of a run that does not speak the worker protocol, exit code 0 means the same.
    """

    rank: int
    node: str
    exit_code: int | None = None
    signal: int | None = None
    completed: bool = False
    detail: str = ""


class WorkerFault(RunEvent, frozen=True, kw_only=True):
    """A trainer reports an error of its own.

    `fault` is exception, not_finite, out_of_memory, data, config, checkpoint, divergence, unstable or peer. `peer` means
    only that another rank went away: it is a symptom, never a cause. `config` and `unstable` (too many steps in a row were
    skipped) cannot be mended by another attempt.
    """

    rank: int
    node: str
    fault: str
    detail: str


class WorkerHung(RunEvent, frozen=True, kw_only=True):
    """Verdict of a detector: a rank (or, with rank -1, the gang as a whole) stopped making progress."""

    rank: int
    node: str
    evidence: str


class GangFormed(RunEvent, frozen=True, kw_only=True):
    """All ranks have joined and connected their process groups.

    Of a run that does not speak the worker protocol: all its processes have been started; nothing more is seen of them.
    """


class GangRestored(RunEvent, frozen=True, kw_only=True):
    """All ranks hold the state of `step`. `source` is init, peers or checkpoint."""

    step: int
    source: str
    detail: str = ""


class FirstStep(RunEvent, frozen=True, kw_only=True):
    """All ranks have completed `step`, the first of the attempt."""

    step: int


class StepRegained(RunEvent, frozen=True, kw_only=True):
    """All ranks are past the highest step that any earlier attempt had completed: `step` is new."""

    step: int


class StepsCounted(RunEvent, frozen=True, kw_only=True):
    """From time to time: the step that all ranks have completed, and the stalls since the last such event."""

    step: int
    checkpoint_stall_ns: int = 0
    data_stall_ns: int = 0


class CheckpointCommitted(RunEvent, frozen=True, kw_only=True):
    step: int
    path: str
    digest: str


class CheckpointRejected(RunEvent, frozen=True, kw_only=True):
    """A checkpoint did not prove and was passed over for the one before it."""

    path: str
    why: str


class RunFinished(RunEvent, frozen=True, kw_only=True):
    """All ranks said bye with every step done."""

    step: int


AnyEvent = (
    DaemonStarted | DeadlinePassed | CommandFailed | RunSubmitted | RunCancelled | NodeQuarantined | NodeReadmitted
    | NodeRetired | FaultInjected | NodeReady | NodeLost | NodeFindings | NodeProbed | StoreReady | StoreLost
    | WorkerLeft | WorkerExited | WorkerFault | WorkerHung | GangFormed | GangRestored | FirstStep | StepRegained
    | StepsCounted | CheckpointCommitted | CheckpointRejected | RunFinished
)  # fmt: skip
