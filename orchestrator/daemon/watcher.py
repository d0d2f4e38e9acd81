"""What the daemon sees, folded by pure detectors into the events that the core decides on.

Runs in the event loop's thread. Beats and progress end here; only verdicts and outcomes are put to the controller.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from orchestrator.daemon.cluster import LiveCluster
from orchestrator.detectors.gang import GangFold, GangTarget
from orchestrator.detectors.hang import HangDetector
from orchestrator.detectors.node_loss import NodeLossDetector
from orchestrator.link.messages import Hello, LogChunk, Report, WorkerStatus
from orchestrator.recovery.events import AnyEvent, NodeLost, NodeReady, RunEvent, WorkerHung
from orchestrator.recovery.state import Cause, Decision, RecoveryPhase, RunPhase, RunState, State

log = structlog.get_logger("watcher")

LIVE = frozenset({RunPhase.STARTING, RunPhase.RUNNING, RunPhase.RECOVERING})
STILL_NS = 1_000_000_000  # between two ticks; a longer gap is a daemon that was stopped or starved, not a late tick
FORMING = frozenset({RecoveryPhase.FORM, RecoveryPhase.RESTORE, RecoveryPhase.FIRST_STEP})


def target_of(run: RunState) -> GangTarget:
    """What to look for. All that a forming gang can still say is awaited at once, since messages overtake decisions."""
    forming = run.stage in FORMING
    return GangTarget(
        run=run.run, attempt=run.attempt, world_size=run.plan.world_size, step=run.step, awaits_form=forming,
        awaits_restore=forming, awaits_first_step=forming, awaits_regain=run.ledger.cause == Cause.REDONE_STEPS,
    )  # fmt: skip


class Watcher:
    """A HubSink. `ack(node, cursor)` tells a supervisor that its report is durable; safe to call from any thread.

    `superseded(why)` is called when a node obeys a newer daemon: this one must not command any more.
    """

    def __init__(
        self,
        cluster: LiveCluster,
        state: Callable[[], State],
        ack: Callable[[str, int], None],
        on_log: Callable[[str, LogChunk], None],
        on_report: Callable[[str, AnyEvent], None],
        superseded: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._state = state
        self._ack = ack
        self._on_log = on_log
        self._on_report = on_report
        self._superseded = superseded
        self._folds: dict[str, GangFold] = {}
        self._hangs: dict[str, HangDetector] = {}
        self._said_hung: set[tuple[str, int]] = set()
        self._loss = NodeLossDetector()
        self._ticked_ns = 0

    # --- what supervisors say

    def node_connected(self, hello: Hello) -> None:
        if hello.epoch > self._state().epoch:
            self._superseded(f"{hello.node} obeys epoch {hello.epoch}; this daemon has {self._state().epoch}")
            return
        self._loss.connected(hello.node, self._cluster.now_ns())
        workers = tuple((w.run, w.attempt, w.rank) for w in hello.workers if w.phase != "done")
        log.info("node_connected", node=hello.node, boot_id=hello.boot_id, workers=len(workers))
        self._cluster.put(
            NodeReady(node=hello.node, gpus=hello.gpus, boot_id=hello.boot_id, workers=workers, stores=hello.stores)
        )
        self.statuses(hello.node, hello.workers)

    def node_disconnected(self, node: str, why: str) -> None:
        log.warning("node_disconnected", node=node, why=why)
        self._loss.disconnected(node, why, self._cluster.now_ns())

    def beat(self, node: str, at_ns: int) -> None:
        self._loss.beat(node, self._cluster.now_ns())

    def report(self, node: str, report: Report) -> None:
        now_ns = self._cluster.now_ns()
        event = msgspec.structs.replace(
            report.event,
            observed_at_ns=now_ns - report.age_ns,
            fault_at_ns=now_ns - report.fault_age_ns if report.fault_age_ns else 0,
        )
        if isinstance(event, RunEvent) and event.run in self._folds:
            self._count(event.run, now_ns, force=True)  # before the failure, or the last steps would look lost

        def settled(_: Decision | None) -> None:
            self._ack(node, report.cursor)

        self._cluster.put(event, settled)
        self._on_report(node, event)

    def statuses(self, node: str, workers: tuple[WorkerStatus, ...]) -> None:
        now_ns = self._cluster.now_ns()
        for run in {w.run for w in workers}:
            fold = self._folds.setdefault(run, GangFold())
            fold.update([w for w in workers if w.run == run], now_ns)
            self._evaluate(run, now_ns)

    def log_chunk(self, node: str, chunk: LogChunk) -> None:
        self._on_log(node, chunk)

    # --- what Ray says

    def ray_nodes(self, nodes: dict[str, bool]) -> None:
        """Node names of Ray's list; true where any life of the node is alive."""
        for node, alive in nodes.items():
            self._loss.ray_says(node, alive)

    # --- what time says

    def expect_known_nodes(self) -> None:
        """After a start: supervisors that the journal knows are given time to come back."""
        for node in self._state().nodes.values():
            if node.present:
                self._loss.expect(node.node, self._cluster.now_ns())

    def tick(self) -> None:
        """A few times a second."""
        now_ns = self._cluster.now_ns()
        self._excuse_own_silence(now_ns)
        for node, evidence in self._loss.verdicts(now_ns):
            log.warning("node_lost", node=node, evidence=evidence)
            self._cluster.put(NodeLost(node=node, evidence=evidence, observed_at_ns=now_ns))
        for name in list(self._folds):
            run = self._state().runs.get(name)
            if run is None or run.phase not in LIVE:
                continue
            self._evaluate(name, now_ns)
            self._count(name, now_ns)
            self._check_hang(run, now_ns)

    def _excuse_own_silence(self, now_ns: int) -> None:
        """Beats that came while the daemon was stopped are still unread: they must not cost a healthy run its nodes."""
        last_ns, self._ticked_ns = self._ticked_ns, now_ns
        gap_ns = now_ns - last_ns
        if not last_ns or gap_ns <= STILL_NS:
            return
        log.warning("daemon_stood_still", seconds=round(gap_ns / 1e9, 1))
        self._loss.stood_still(gap_ns, now_ns)
        for hang in self._hangs.values():
            hang.stood_still(gap_ns, now_ns)

    def live(self, run: str) -> tuple[WorkerStatus, ...]:
        fold = self._folds.get(run)
        return tuple(fold.workers.values()) if fold else ()

    def _evaluate(self, name: str, now_ns: int) -> None:
        run = self._state().runs.get(name)
        if run is None or run.phase not in LIVE:
            return
        for event in self._folds[name].events(target_of(run), now_ns):
            self._cluster.put(event)

    def _count(self, name: str, now_ns: int, *, force: bool = False) -> None:
        run = self._state().runs.get(name)
        if run is None or run.phase != RunPhase.RUNNING:
            return
        if event := self._folds[name].count(target_of(run), now_ns, force=force):
            self._cluster.put(event)

    def _check_hang(self, run: RunState, now_ns: int) -> None:
        detector = self._hangs.setdefault(run.run, HangDetector())
        if run.phase != RunPhase.RUNNING or not run.plan.speaks_protocol:
            return  # a recovery has deadlines of its own; a plain command says nothing of its steps
        fold, target = self._folds[run.run], target_of(run)
        detector.observe(run.attempt, fold.completed_step(target), now_ns)
        detector.evaluating(fold.evaluating_ns(target))
        evidence = detector.verdict(now_ns)
        if evidence and (run.run, run.attempt) not in self._said_hung:
            self._said_hung.add((run.run, run.attempt))
            fault_at_ns = detector.advanced_ns
            self._cluster.put(
                WorkerHung(
                    run=run.run,
                    attempt=run.attempt,
                    rank=-1,
                    node="",
                    evidence=evidence,
                    observed_at_ns=now_ns,
                    fault_at_ns=fault_at_ns,
                )
            )
