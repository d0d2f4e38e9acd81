"""Any event at any time: half of what it says fits the present state, the rest is nonsense, late or sent twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from orchestrator.recovery import events as ev
from orchestrator.recovery.decide import next_deadline
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import RunState, State

NODES = ("n0", "n1", "n2", "n3", "n4", "stranger")
RUNS = ("a", "b", "stranger")
PLANS = (
    ev.RunPlan(nodes=1, replicas=1, shards=1),
    ev.RunPlan(nodes=2, ranks_per_node=2, replicas=2, shards=2),
    ev.RunPlan(nodes=4, replicas=2, shards=2, priority=1, max_recoveries=3),
    ev.RunPlan(nodes=3, replicas=1, shards=3, speaks_protocol=False),
    ev.RunPlan(nodes=5, replicas=2, shards=2),  # not sound
)


class Source:
    """Makes events from a seed; each depends on the state only through what it names."""

    def __init__(self, seed: int, state: State) -> None:
        self.random = random.Random(seed)
        self.state = state
        self.run = self.pick(RUNS[:2]) if self.often() else RUNS[2]
        self.known: RunState | None = state.runs.get(self.run)
        self.attempt = self.known.attempt if self.known and self.often() else self.random.randrange(6)
        self.rank, self.node = self.random.randrange(-1, 5), self.pick(NODES)
        if self.known and self.known.placement and self.often():
            self.rank = self.random.randrange(self.known.plan.world_size)
            self.node = self.known.placement[self.rank // self.known.plan.ranks_per_node] or self.node

    def pick(self, options: Any) -> Any:
        return self.random.choice(options)

    def often(self) -> bool:
        return self.random.random() < 0.9

    def event(self, kind: str) -> ev.Event:
        return EVENTS[kind](self, self.times())

    def times(self) -> dict[str, int]:
        at = self.state.at_ns + self.pick([-5, 0, 1, 10**6, 10**8, 10**9, 10**11])
        times = {"at_ns": at, "observed_at_ns": self.pick([0, at - 10**7, at, at + 5])}
        return {**times, "fault_at_ns": self.pick([0, at - 10**9, at - 10**12, at + 3])}

    def of_run(self) -> dict[str, Any]:
        return {"run": self.run, "attempt": self.attempt}

    def of_rank(self) -> dict[str, Any]:
        return {**self.of_run(), "rank": self.rank, "node": self.node}

    def findings(self) -> tuple[ev.Finding, ...]:
        finding = ev.Finding(
            check="xid",
            cause="xid_48",
            severity=self.pick(["info", "warning", "error", "fatal"]),
            action=self.pick(["none", "reset_gpu", "replace"]),
            sentence="XID 48 on GPU 0",
        )
        return (finding,) * self.random.randrange(3)

    def workers(self) -> tuple[tuple[str, int, int], ...]:
        any_worker = (self.run, self.attempt, self.rank), (self.pick(RUNS), self.random.randrange(5), 0)
        return tuple(self.pick(any_worker) for _ in range(self.random.randrange(3)))

    def due(self) -> int:
        return next_deadline(self.state) or self.state.at_ns

    def store_node(self) -> str:
        return self.known.store[0] if self.known and self.known.store and self.often() else self.node


Maker = Callable[[Source, dict[str, int]], ev.Event]

# Repeated kinds are the ones that lead on.
EVENTS: dict[str, Maker] = {
    "daemon": lambda s, t: ev.DaemonStarted(
        epoch=s.state.epoch + s.pick([0, 1]), policy=Policy(preflight=s.pick([True, False])), **t
    ),
    "deadline": lambda s, t: ev.DeadlinePassed(at_ns=s.due()),
    "early": lambda s, t: ev.DeadlinePassed(**t),
    "failed": lambda s, t: ev.CommandFailed(
        command=s.pick(["probe_node", "start_store", "join_gang", "leave_gang"]), node=s.node, error="no", **s.of_run()
    ),
    "submit": lambda s, t: ev.RunSubmitted(run=s.run, plan=s.pick(PLANS), **t),
    "cancel": lambda s, t: ev.RunCancelled(who="ada", **s.of_run(), **t),
    "quarantine": lambda s, t: ev.NodeQuarantined(node=s.node, who="ada", **t),
    "readmit": lambda s, t: ev.NodeReadmitted(node=s.node, who="ada", **t),
    "retire": lambda s, t: ev.NodeRetired(node=s.node, who="ada", **t),
    "inject": lambda s, t: ev.FaultInjected(node=s.node, fault="kill", **t),
    "ready": lambda s, t: ev.NodeReady(node=s.node, gpus=1, boot_id=s.pick("aaab"), workers=s.workers(), **t),
    "lost": lambda s, t: ev.NodeLost(node=s.node, evidence="no beat", **t),
    "findings": lambda s, t: ev.NodeFindings(node=s.node, findings=s.findings(), **t),
    "probed": lambda s, t: ev.NodeProbed(
        node=s.node, purpose=s.pick(["preflight", "probation"]), ok=s.often(), findings=s.findings(), **s.of_run(), **t
    ),
    "store": lambda s, t: ev.StoreReady(node=s.store_node(), host="h", port=1, **s.of_run(), **t),
    "no_store": lambda s, t: ev.StoreLost(node=s.store_node(), detail="killed", **s.of_run(), **t),
    "left": lambda s, t: ev.WorkerLeft(
        step=s.random.randrange(30), voted_step=30, holds_state=s.often(), **s.of_rank(), **t
    ),
    "exited": lambda s, t: ev.WorkerExited(completed=s.pick([True, False]), exit_code=0, **s.of_rank(), **t),
    "killed": lambda s, t: ev.WorkerExited(signal=9, **s.of_rank(), **t),
    "fault": lambda s, t: ev.WorkerFault(fault=s.pick(["peer", "exception"]), detail="", **s.of_rank(), **t),
    "config": lambda s, t: ev.WorkerFault(fault="config", detail="", **s.of_rank(), **t),
    "hung": lambda s, t: ev.WorkerHung(evidence="no step", **s.of_rank(), **t),
    "formed": lambda s, t: ev.GangFormed(**s.of_run(), **t),
    "restored": lambda s, t: ev.GangRestored(
        step=s.random.randrange(20), source=s.pick(["init", "peers", "checkpoint"]), **s.of_run(), **t
    ),
    "first": lambda s, t: ev.FirstStep(step=s.random.randrange(1, 40), **s.of_run(), **t),
    "regained": lambda s, t: ev.StepRegained(step=s.random.randrange(50), **s.of_run(), **t),
    "counted": lambda s, t: ev.StepsCounted(
        step=s.random.randrange(50), checkpoint_stall_ns=s.pick([0, 10**9]), data_stall_ns=s.pick([0, -5, 10**7]),
        **s.of_run(), **t,
    ),
    "saved": lambda s, t: ev.CheckpointCommitted(step=4, path="p", digest="d", **s.of_run(), **t),
    "rejected": lambda s, t: ev.CheckpointRejected(path="p", why="digest", **s.of_run(), **t),
    "finished": lambda s, t: ev.RunFinished(step=60, **s.of_run(), **t),
}  # fmt: skip

RARE = ("cancel", "retire", "config", "finished", "quarantine")
LEADING = ("ready", "submit", "store", "formed", "restored", "first", "left", "deadline", "probed")
KINDS = (*EVENTS, *(kind for kind in EVENTS if kind not in RARE), *LEADING * 3)
