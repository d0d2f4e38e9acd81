"""A small cluster that answers every command sooner or later, in any order, often twice, after some faults.

It knows nothing of stages: nodes hold trainers, trainers join, leave and end. Used to show that a run always ends.
"""

from __future__ import annotations

import random

import msgspec

from orchestrator.recovery import events as ev
from orchestrator.recovery import invariants
from orchestrator.recovery.commands import AnyCommand, JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.decide import decide, initial_state, next_deadline
from orchestrator.recovery.draft import TERMINAL
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import State

STEPS = 100
XID = ev.Finding(check="xid", cause="xid_48", severity="fatal", action="reset_gpu", sentence="XID 48 on GPU 0")


class FairCluster:
    """One run, `run`, on nodes n0, n1, ...; `faults` faults come at random moments, none after them."""

    def __init__(self, seed: int, plan: ev.RunPlan, nodes: int, faults: int, policy: Policy) -> None:
        self.random = random.Random(seed)
        self.plan = plan
        self.faults = faults
        self.state: State = initial_state(policy)
        self.trainers: dict[str, dict[int, int]] = {f"n{i}": {} for i in range(nodes)}  # node -> rank -> attempt
        self.boots = dict.fromkeys(self.trainers, 0)
        self.lost: set[str] = set()
        self.joined: dict[int, set[int]] = {}  # attempt -> ranks
        self.inbox: list[ev.Event] = [ev.DaemonStarted(epoch=1, policy=policy)]
        self.inbox += [self.ready(node) for node in self.trainers]
        self.inbox.append(ev.RunSubmitted(run="run", plan=plan))
        self.history: list[ev.Event] = []

    def ready(self, node: str) -> ev.NodeReady:
        workers = tuple(("run", attempt, rank) for rank, attempt in sorted(self.trainers[node].items()))
        return ev.NodeReady(node=node, gpus=1, boot_id=f"boot-{self.boots[node]}", workers=workers)

    def play(self, limit: int = 3000) -> None:
        """Until the run has ended. Raises AssertionError when it has not after `limit` events."""
        for _ in range(limit):
            run = self.state.runs.get("run")
            if run is not None and run.phase in TERMINAL:
                return
            self.take(self.next_event())
        raise AssertionError(f"the run has not ended: {self.state.runs['run']}")

    def next_event(self) -> ev.Event:
        if self.faults and self.random.random() < 0.2:
            self.faults -= 1
            self.break_something()
        if not self.inbox:
            self.heal()
        if not self.inbox:
            self.make_progress()
        if not self.inbox:
            due = next_deadline(self.state)
            assert due is not None, "nothing is awaited and nothing happens"
            return ev.DeadlinePassed(at_ns=max(due, self.state.at_ns))
        # One node's reports keep their order only with themselves; the start of all comes first.
        index = self.random.randrange(len(self.inbox)) if self.history[len(self.trainers) + 1 :] else 0
        event = self.inbox[index]
        if self.random.random() > 0.1:  # else it will come again
            del self.inbox[index]
        return msgspec.structs.replace(event, at_ns=self.state.at_ns + self.random.randrange(1, 50_000_000))

    def take(self, event: ev.Event) -> None:
        decision = decide(self.state, event, self.state.policy)
        assert invariants.check_step(self.state, event, decision) == [], event
        self.history.append(event)
        self.state = decision.state
        for command in decision.commands:
            if command.node not in self.lost:
                self.obey(command)

    def obey(self, command: AnyCommand) -> None:
        node, trainers = command.node, self.trainers[command.node]
        if isinstance(command, ProbeNode):
            self.inbox.append(
                ev.NodeProbed(node=node, purpose=command.purpose, ok=True, run=command.run, attempt=command.attempt)
            )
        elif isinstance(command, StartStore):
            self.inbox.append(ev.StoreReady(run="run", attempt=command.attempt, node=node, host=node, port=1))
        elif isinstance(command, JoinGang):
            for rank in command.ranks:
                trainers[rank] = command.attempt
            self.join(command)
        elif isinstance(command, LeaveGang):
            self.inbox += [self.left(node, rank, command.attempt) for rank in trainers]
        elif isinstance(command, StopWorkers):
            self.inbox += [self.exited(node, rank, max(a, command.attempt)) for rank, a in trainers.items()]
            trainers.clear()

    def join(self, command: JoinGang) -> None:
        attempt, ranks = command.attempt, self.joined.setdefault(command.attempt, set())
        ranks.update(command.ranks)
        if len(ranks) == self.plan.world_size:
            step = self.state.runs["run"].step if command.restore == "peers" else 0
            self.inbox += [
                ev.GangFormed(run="run", attempt=attempt),
                ev.GangRestored(run="run", attempt=attempt, step=step, source=command.restore),
                ev.FirstStep(run="run", attempt=attempt, step=step + 1),
            ]

    def left(self, node: str, rank: int, attempt: int) -> ev.WorkerLeft:
        step = self.state.runs["run"].step
        return ev.WorkerLeft(
            run="run", attempt=attempt, rank=rank, node=node, step=step, voted_step=step, holds_state=True
        )

    def exited(self, node: str, rank: int, attempt: int) -> ev.WorkerExited:
        return ev.WorkerExited(run="run", attempt=attempt, rank=rank, node=node, signal=9)

    def break_something(self) -> None:
        node = self.random.choice(sorted(self.trainers))
        kind = self.random.choice(["kill", "lose", "xid", "hang", "store", "daemon", "reboot"])
        attempt = self.state.runs["run"].attempt if "run" in self.state.runs else 0
        trainers = self.trainers[node]
        if kind == "kill" and trainers:
            rank = self.random.choice(sorted(trainers))
            self.inbox.append(self.exited(node, rank, trainers.pop(rank)))
        elif kind == "lose":
            trainers.clear()
            self.lost.add(node)
            self.inbox.append(ev.NodeLost(node=node, evidence="no beat"))
        elif kind == "xid":
            self.inbox.append(ev.NodeFindings(node=node, findings=(XID,)))
        elif kind == "hang" and trainers:
            self.inbox.append(ev.WorkerHung(run="run", attempt=attempt, rank=-1, node="", evidence="no step"))
        elif kind == "store":
            self.inbox.append(ev.StoreLost(run="run", attempt=attempt, node=node, detail="killed"))
        elif kind == "daemon":
            self.inbox.append(ev.DaemonStarted(epoch=self.state.epoch + 1, policy=self.state.policy))
            self.inbox += [self.ready(name) for name in sorted(self.trainers) if name not in self.lost]
        elif kind == "reboot":
            trainers.clear()
            self.boots[node] += 1
            self.inbox.append(self.ready(node))

    def heal(self) -> None:
        """An operator readmits what is out, lost nodes come back."""
        for node in sorted(self.lost):
            self.boots[node] += 1
            self.lost.discard(node)
            self.inbox.append(self.ready(node))
        for node in self.state.nodes.values():
            if node.health in ("quarantined", "suspect") and not node.run and node.present:
                self.inbox.append(ev.NodeReadmitted(node=node.node, who="ada"))

    def make_progress(self) -> None:
        run = self.state.runs["run"]
        if run.phase != "running":
            return
        if run.step < STEPS:
            self.inbox.append(ev.StepsCounted(run="run", attempt=run.attempt, step=run.step + 10))
        else:
            self.inbox.append(ev.RunFinished(run="run", attempt=run.attempt, step=run.step))
