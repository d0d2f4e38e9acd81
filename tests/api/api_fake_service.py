"""A daemon made of one fixed state: two runs, three nodes, two incidents, a few journal entries."""

from __future__ import annotations

import asyncio
from typing import Any

from immutables import Map

from orchestrator.api.errors import RefusedError
from orchestrator.api.live import live_view
from orchestrator.api.service import LogText, Submitted
from orchestrator.journal.entry import Entry
from orchestrator.link.messages import WorkerStatus
from orchestrator.recovery.commands import LeaveGang
from orchestrator.recovery.events import (
    FaultInjected,
    Finding,
    NodeLost,
    NodeReady,
    RunPlan,
    RunSubmitted,
    WorkerExited,
)
from orchestrator.recovery.state import (
    Cause,
    Incident,
    Ledger,
    NodeHealth,
    NodeState,
    RecoveryPhase,
    Rung,
    RunPhase,
    RunState,
    State,
)
from orchestrator.spec.load import parse_spec

S = 1_000_000_000
T0 = 1_700_000_000 * S
NOW = T0 + 1000 * S

RECOVERED = Incident(
    id="inc-1",
    run="tiny",
    cause="worker_exited",
    node="node-1",
    rank=1,
    reason="Rank 1 on node-1 was ended by signal 9.",
    fault_at_ns=T0 + 100 * S,
    detected_at_ns=T0 + 100 * S + S // 10,
    marks=(
        ("detect", T0 + 100 * S),
        ("decide", T0 + 100 * S + S // 10),
        ("isolate", T0 + 100 * S + S // 10),
        ("form", T0 + 100 * S + S // 4),
        ("first_step", T0 + 100 * S + S // 2),
    ),
    ended_at_ns=T0 + 100 * S + 3 * S // 4,
    step_before=50,
    restored_step=48,
    outcome="recovered",
)
OPEN = Incident(
    id="inc-2",
    run="tiny",
    cause="node_lost",
    node="node-2",
    reason="node-2 can't be reached.",
    fault_at_ns=NOW - 2 * S,
    detected_at_ns=NOW - S,
    marks=(("detect", NOW - 2 * S), ("decide", NOW - S)),
    step_before=90,
    also=("xid_48 node-1",),
)


def _ledger() -> Ledger:
    accounts = {Cause.START: 10 * S, Cause.TRAINING: 970 * S, Cause.DETECT: 2 * S}
    return Ledger(
        opened_ns=T0,
        since_ns=T0 + 982 * S,
        cause=Cause.TRAINING,
        accounts=Map({cause.value: ns for cause, ns in accounts.items()}),
    )


def make_state() -> State:
    tiny = RunState(
        run="tiny",
        plan=RunPlan(nodes=2, ranks_per_node=2, replicas=2, shards=2),
        phase=RunPhase.RECOVERING,
        reason="node-2 can't be reached.",
        submitted_ns=T0,
        attempt=3,
        stage=RecoveryPhase.ISOLATE,
        placement=("node-1", "node-2"),
        step=90,
        recoveries=2,
        checkpoint_step=50,
        checkpoint_path="/runs/tiny/checkpoints/step-50",
        rung=Rung.IN_PLACE,
        incident=OPEN,
        incidents=(RECOVERED,),
        ledger=_ledger(),
    )
    later = RunState(
        run="later",
        plan=RunPlan(nodes=8, replicas=8, shards=1),
        reason="waits for 8 nodes: 1 is free, run tiny holds 2",
        submitted_ns=T0 + 500 * S,
        ledger=Ledger(opened_ns=T0 + 500 * S, since_ns=T0 + 500 * S, cause=Cause.WAITING_FOR_CAPACITY),
    )
    finding = Finding(
        check="xid",
        cause="xid_48",
        severity="error",
        action="reset_gpu",
        sentence="GPU 3 had a double-bit error.",
        gpu=3,
    )
    nodes = [
        NodeState(node="node-1", gpus=8, run="tiny", since_ns=T0),
        NodeState(node="node-2", gpus=8, run="tiny", since_ns=T0, present=False, reason="can't be reached"),
        NodeState(
            node="node-3",
            gpus=8,
            health=NodeHealth.QUARANTINED,
            reason="GPU 3 had a double-bit error.",
            since_ns=T0 + 300 * S,
            findings=(finding,),
            seconds_ns=Map({"healthy": 300 * S}),
        ),
    ]
    return State(
        epoch=4,
        at_ns=NOW,
        nodes=Map({n.node: n for n in nodes}),
        runs=Map({"tiny": tiny, "later": later}),
        queue=("later",),
    )


def make_entries() -> list[Entry]:
    leave = LeaveGang(node="node-1", run="tiny", attempt=2, why="rank 1 is gone")
    steps: list[tuple[Any, tuple[Any, ...], str]] = [
        (NodeReady(node="node-1", gpus=8, boot_id="a"), (), "node-1 is new and healthy."),
        (RunSubmitted(run="tiny", plan=RunPlan(nodes=2, replicas=2, shards=1)), (), "tiny is placed."),
        (FaultInjected(node="node-1", fault="kill_worker", who="ann"), (), "A fault test began."),
        (
            WorkerExited(run="tiny", attempt=2, rank=1, node="node-1", signal=9),
            (leave,),
            "Rank 1 died: the others leave the gang.",
        ),
        (NodeLost(node="node-3", evidence="silent"), (), "node-3 is in no run."),
    ]
    return [
        Entry(seq=i, at_ns=T0 + i * S, epoch=4, event=event, commands=commands, reason=why)
        for i, (event, commands, why) in enumerate(steps, start=1)
    ]


class FakeService:
    """Implements `orchestrator.api.service.Service`; `calls` holds what it was told to do."""

    def __init__(self) -> None:
        self.the_state = make_state()
        self.journal = make_entries()
        self.calls: list[tuple[Any, ...]] = []
        self.log = "step 1\nstep 2\n"
        self.log_attempt = 3

    def state(self) -> State:
        return self.the_state

    def now_ns(self) -> int:
        return NOW

    def entries(self, after: int, limit: int) -> list[Entry]:
        return [e for e in self.journal if e.seq > after][:limit]

    def last_seq(self) -> int:
        return self.journal[-1].seq if self.journal else 0

    async def wait_entry(self, after: int, timeout_s: float) -> None:
        for _ in range(int(timeout_s / 0.01)):
            if self.last_seq() > after:
                return
            await asyncio.sleep(0.01)

    def live(self, run: str) -> dict[str, Any]:
        if run != "tiny":
            return {}
        status = WorkerStatus(
            run="tiny",
            attempt=3,
            rank=0,
            pid=1,
            phase="train",
            step=91,
            loss=2.5,
            grad_norm=0.7,
            tokens=91 * 2048,
            skipped=2,
            step_ms=50,
        )
        return live_view([status])

    def spec(self, run: str) -> dict[str, Any]:
        return {"name": run, "env": {"HF_TOKEN": "(hidden)"}}

    async def submit(self, text: str, file: str) -> Submitted:
        spec = parse_spec(text, file, check=None)
        self.calls.append(("submit", spec.name, file))
        return Submitted(
            run=f"{spec.name}-2", reason="It waits for 4 nodes: 1 is free.", warnings=("No cluster is so big.",)
        )

    async def cancel(self, run: str, who: str, why: str) -> str:
        if self.the_state.runs[run].finished_ns:
            raise RefusedError(f"{run} has ended already.")
        self.calls.append(("cancel", run, who, why))
        return f"{run} is cancelled by {who}."

    async def quarantine(self, node: str, who: str, why: str) -> str:
        self.calls.append(("quarantine", node, who, why))
        return f"{node} is taken out by {who}: {why}."

    async def readmit(self, node: str, who: str, why: str) -> str:
        self.calls.append(("readmit", node, who, why))
        return f"{node} is on probation."

    async def inject(self, node: str, fault: str, details: dict[str, int | str], who: str) -> str:
        self.calls.append(("inject", node, fault, details))
        return f"{fault} begins on {node}."

    async def read_log(self, run: str, rank: int, attempt: int, offset: int) -> LogText:
        data = self.log.encode()[offset:]
        return LogText(text=data.decode(), next_offset=offset + len(data), attempt=attempt or self.log_attempt)

    async def shutdown(self) -> None:
        self.calls.append(("shutdown",))
