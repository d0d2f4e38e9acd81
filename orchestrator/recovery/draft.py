"""The state while one event is decided: the only mutable thing of the core, made and dropped inside `decide`.

It keeps what is derived (free nodes, nodes held, nodes out, deadlines) in step with what it is derived from.
"""

from __future__ import annotations

from immutables import Map
from msgspec.structs import replace

from orchestrator.recovery import deadlines
from orchestrator.recovery.commands import Command
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, NodeHealth, NodeState, RunPhase, RunState, State

TERMINAL = frozenset({RunPhase.COMPLETED, RunPhase.FAILED, RunPhase.CANCELLED})
OUT = frozenset({NodeHealth.QUARANTINED, NodeHealth.REMEDIATING, NodeHealth.PROBATION})


def placeable(node: NodeState) -> bool:
    return node.present and node.health is NodeHealth.HEALTHY and not node.run


def standing(node: NodeState) -> str:
    """Under what name a node's time is counted."""
    return "in_run" if node.run else str(node.health) if node.present else "absent"


class Draft:
    """Times are nanoseconds of the controller's clock. `now` is the event's time, never before the state's."""

    def __init__(self, state: State, policy: Policy, at_ns: int) -> None:
        self.policy = policy
        self.now = max(at_ns, state.at_ns)
        self.epoch = state.epoch
        self.nodes: Map[str, NodeState] = state.nodes
        self.runs: Map[str, RunState] = state.runs
        self.queue = state.queue
        self.free: Map[str, None] = state.free
        self.holding: Map[str, int] = state.holding
        self.quarantined = state.quarantined
        self.deadlines = state.deadlines
        self.incidents = state.incidents
        self.commands: list[Command] = []
        self.reasons: list[str] = []
        self.serve_queue = False  # capacity or queue changed: see who can be placed before the decision is made
        self._policy = state.policy

    def adopt(self, policy: Policy, epoch: int) -> None:
        self.policy = self._policy = policy
        self.epoch = epoch

    def say(self, sentence: str) -> None:
        self.reasons.append(sentence)

    def send(self, command: Command) -> None:
        self.commands.append(command)

    def put_run(self, run: RunState) -> RunState:
        before = self.runs.get(run.run)
        self.runs = self.runs.set(run.run, run)
        if run.deadline_ns and (before is None or before.deadline_ns != run.deadline_ns):
            self.deadlines = deadlines.push(self.deadlines, (run.deadline_ns, run.run))
        if before is None or before.placement is not run.placement:
            held = len(run.placement) - run.placement.count("")
            if held:
                self.holding = self.holding.set(run.run, held)
            elif run.run in self.holding:
                self.holding = self.holding.delete(run.run)
        return run

    def put_node(self, node: NodeState) -> NodeState:
        """Store a node; its time up to now is charged to its former standing when that changes."""
        before = self.nodes.get(node.node)
        if before is not None and standing(before) != standing(node):
            name = standing(before)
            spent = before.seconds_ns.get(name, 0) + self.now - before.since_ns
            node = replace(node, seconds_ns=before.seconds_ns.set(name, spent), since_ns=self.now)
        self.nodes = self.nodes.set(node.node, node)
        self.quarantined += (node.health in OUT) - (before is not None and before.health in OUT)
        if placeable(node):
            if node.node not in self.free:
                self.free = self.free.set(node.node, None)
                self.serve_queue = True
        elif node.node in self.free:
            self.free = self.free.delete(node.node)
        return node

    def is_due(self, key: deadlines.Key) -> bool:
        """Whether a heap entry is still the deadline of its run."""
        run = self.runs.get(key[1])
        return run is not None and run.deadline_ns == key[0]

    def prune_deadlines(self) -> None:
        while (key := deadlines.top(self.deadlines)) is not None and not self.is_due(key):
            self.deadlines = deadlines.pop(self.deadlines)

    def finish(self) -> Decision:
        self.prune_deadlines()
        state = State(
            policy=self._policy,
            epoch=self.epoch,
            at_ns=self.now,
            nodes=self.nodes,
            runs=self.runs,
            queue=self.queue,
            free=self.free,
            holding=self.holding,
            quarantined=self.quarantined,
            deadlines=self.deadlines,
            incidents=self.incidents,
        )
        return Decision(state=state, commands=tuple(self.commands), reason=" ".join(self.reasons))
