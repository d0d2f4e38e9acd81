"""The trainers of this node: brought into attempts, let go, stopped, and what becomes of them reported.

One process a (run, rank). Whoever shows up for a rank that another process holds is killed: two would write as one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable

import structlog

from orchestrator.link.messages import WorkerStatus
from orchestrator.node import protocol, testimony
from orchestrator.node.board import StatusBoard
from orchestrator.node.launcher import Launcher, LaunchError
from orchestrator.node.lines import Line
from orchestrator.node.processes import Reaper, kill_unwatched
from orchestrator.node.tasks import Tasks
from orchestrator.node.worker import Worker
from orchestrator.node.workload import Workload
from orchestrator.recovery.commands import JoinGang, LeaveGang
from orchestrator.recovery.events import AnyEvent, CommandFailed, WorkerExited

# A dead trainer's last words are in the socket when its death shows; a process that it left behind may hold it open.
DRAIN_S = 0.25
SURPLUS_GRACE_S = 1.0

log = structlog.get_logger(__name__)


class Crew:
    """`report` takes an event and the time at which it was seen (monotonic nanoseconds)."""

    def __init__(
        self,
        node: str,
        *,
        launcher: Launcher,
        reaper: Reaper,
        report: Callable[[AnyEvent, int], None],
        send_statuses: Callable[[tuple[WorkerStatus, ...]], object],
        tasks: Tasks,
    ) -> None:
        self._node = node
        self._launcher = launcher
        self._reaper = reaper
        self._report_now = report
        self._tasks = tasks
        self._workers: dict[tuple[str, int], Worker] = {}
        self._completed: dict[tuple[str, int], WorkerExited] = {}
        self._board = StatusBoard(self._status_of, send_statuses)
        self._closed = False

    # --- what lives

    def statuses(self) -> tuple[WorkerStatus, ...]:
        now_ns = time.monotonic_ns()
        return tuple(worker.status(now_ns) for worker in self._workers.values() if worker.process)

    def living(self, run: str = "", rank: int = -1) -> list[Worker]:
        """Workers with a process, of one run or rank or of all, by run and rank."""
        found = (w for w in self._workers.values() if run in ("", w.run) and rank in (-1, w.rank) and w.process)
        return sorted(found, key=lambda worker: worker.key)

    def _status_of(self, key: tuple[str, int]) -> WorkerStatus | None:
        worker = self._workers.get(key)
        return worker.status(time.monotonic_ns()) if worker else None

    def _report(self, event: AnyEvent, observed_ns: int = 0) -> None:
        # What a trainer had done before must not arrive after its end.
        self._board.flush()
        self._report_now(event, observed_ns or time.monotonic_ns())

    # --- orders

    def bring(self, command: JoinGang, workload: Workload) -> None:
        """Every rank of the command into its attempt; ranks of the run that it does not name are stopped."""
        for (run, rank), worker in list(self._workers.items()):
            if run == command.run and rank not in command.ranks:
                self.stop([worker], SURPLUS_GRACE_S)
        for rank in command.ranks:
            self._bring_rank(command, workload, rank)

    def _bring_rank(self, command: JoinGang, workload: Workload, rank: int) -> None:
        key = (command.run, rank)
        done = self._completed.get(key)
        if done and done.attempt >= command.attempt:
            self._report(done)
            return
        old = self._workers.get(key)
        if old and old.joined >= command.attempt and not old.stopping:
            return
        if old and old.speaks and workload.speaks and not old.stopping:
            old.log_path = self._launcher.rank_log(command.run, command.attempt, rank)
            old.ask_join(self._launcher.join_message(command, rank), command.attempt)
            self._board.changed(key, urgent=True)
            return
        if old:
            self.stop([old], 0.0)
        self._start(command, workload, rank, old)

    def _start(self, command: JoinGang, workload: Workload, rank: int, old: Worker | None) -> None:
        log_path = self._launcher.rank_log(command.run, command.attempt, rank)
        worker = Worker(command.run, rank, command.attempt, speaks=workload.speaks, log_path=log_path)
        if workload.speaks:
            worker.join = self._launcher.join_message(command, rank)
        self._workers[worker.key] = worker
        launch = self._launch(worker, command, workload, old)
        worker.launch = self._tasks.start(launch, name=f"launch {worker.run}/{rank}")

    async def _launch(self, worker: Worker, command: JoinGang, workload: Workload, old: Worker | None) -> None:
        if old:
            await old.ended.wait()
        try:
            pid = await self._launcher.start_trainer(command, workload, worker.rank)
        except LaunchError as error:
            self._forget(worker)
            self._report(
                CommandFailed(
                    command="join_gang", node=self._node, run=worker.run, attempt=command.attempt, error=str(error)
                )
            )
            return
        if worker.process and worker.process.pid != pid:
            # An earlier request was carried out after all, by a standby that died before it could say so.
            self._expel(pid, worker.key)
            return
        self._attach(worker, pid)
        if not worker.speaks:
            worker.take_phase(protocol.Phase(attempt=command.attempt, phase="train"), time.monotonic_ns())
        self._board.changed(worker.key, urgent=True)

    def let_go(self, command: LeaveGang) -> None:
        """Trainers of the run leave the attempt; those that can't, because they don't speak, are ended."""
        for (run, _), worker in list(self._workers.items()):
            if run != command.run or worker.stopping:
                continue
            if not worker.speaks:
                worker.attempt = max(worker.attempt, command.attempt)
                self.stop([worker], SURPLUS_GRACE_S)
                continue
            if not worker.greeted and not worker.left:
                # It never read the join: it is out before it was in.
                worker.join = None
                worker.left = protocol.Left(attempt=command.attempt, step=0, why="it had not joined yet")
            if worker.left:
                worker.attempt = max(worker.attempt, command.attempt)
                self._report_left(worker, worker.left)
            else:
                worker.ask_leave(command.attempt, command.why)

    def stop_run(self, run: str, attempt: int, grace_s: float) -> None:
        """Ends the run's trainers that are of this attempt or older."""
        workers = [w for w in self._workers.values() if w.run == run and w.joined <= attempt]
        for worker in workers:
            worker.attempt = max(worker.attempt, attempt)
        self.stop(workers, grace_s)

    def stop(self, workers: Iterable[Worker], grace_s: float) -> None:
        """A polite word first, SIGKILL after the grace; without grace SIGKILL at once."""
        for worker in workers:
            worker.stopping, worker.stop_grace_s = True, grace_s
            if worker.process is None:
                if worker.launch:
                    worker.launch.cancel()
                self._gone(worker, testimony.never_started(worker, self._node), 0)
                continue
            if grace_s <= 0:
                self.kill(worker)
                continue
            if worker.speaks:
                worker.ask_stop(grace_s)
            else:
                worker.process.send_signal_to_group(signal.SIGTERM)
            asyncio.get_running_loop().call_later(grace_s, self.kill, worker)

    def kill(self, worker: Worker) -> None:
        if worker.process and not worker.ended.is_set():
            worker.process.send_signal_to_group(signal.SIGKILL)

    async def close(self, grace_s: float) -> None:
        """Ends everything; nothing is started any more."""
        self._closed = True
        workers = list(self._workers.values())
        self.stop(workers, grace_s)
        for worker in workers:
            if worker.process:
                await worker.ended.wait()

    # --- what trainers say

    def greet(self, line: Line, hello: protocol.Hello) -> Worker | None:
        """A trainer's new connection. None when the peer is not the process of that rank: it is killed."""
        pid, uid = line.peer()
        if uid != os.geteuid() or self._closed:
            return None
        worker = self._workers.get((hello.run, hello.rank))
        if worker is None:
            worker = self._adopt(hello, pid)
        elif worker.process is None:
            self._attach(worker, pid)
        elif not worker.speaks or worker.process.pid not in (pid, _session(pid)):
            self._expel(pid, worker.key)
            return None
        worker.greet(line, hello.attempt)
        return worker

    def _adopt(self, hello: protocol.Hello, pid: int) -> Worker:
        """A trainer of this node's supervisor before this one, which goes on."""
        log.info("trainer adopted", run=hello.run, rank=hello.rank, pid=pid, attempt=hello.attempt)
        worker = Worker(hello.run, hello.rank, hello.attempt, speaks=True, log_path=None)
        self._workers[worker.key] = worker
        self._attach(worker, pid)
        self._board.changed(worker.key, urgent=True)
        return worker

    def _expel(self, pid: int, key: tuple[str, int]) -> None:
        log.warning("intruder killed", pid=pid, run=key[0], rank=key[1])
        kill_unwatched(pid)

    def _attach(self, worker: Worker, pid: int) -> None:
        if worker.process is None:
            worker.process = self._reaper.watch(pid, lambda: self._begin_burial(worker))
        if worker.stopping:
            self.stop([worker], worker.stop_grace_s)

    def take(self, worker: Worker, said: protocol.Message) -> None:
        now_ns = time.monotonic_ns()
        worker.catch_up(getattr(said, "attempt", 0))
        match said:
            case protocol.Phase() if said.attempt >= worker.joined:
                worker.take_phase(said, now_ns)
                self._board.changed(worker.key, urgent=True)
            case protocol.Progress() if said.attempt >= worker.joined:
                self._board.changed(worker.key, urgent=worker.take_progress(said, now_ns))
            case protocol.Left():
                self._left(worker, said)
            case protocol.Bye():
                worker.bye = said
                worker.view.phase = "done"
            case protocol.Fault() | protocol.Checkpoint() | protocol.CheckpointRejected():
                self._report(testimony.event_of(worker, self._node, said))

    def _left(self, worker: Worker, said: protocol.Left) -> None:
        if said.attempt < worker.joined and not worker.leaving:
            return
        worker.left = said
        worker.view.phase = "waiting"
        self._board.changed(worker.key, urgent=True)
        self._report_left(worker, said)

    def _report_left(self, worker: Worker, left: protocol.Left) -> None:
        self._report(testimony.left(worker, self._node, left))

    # --- how they end

    def _begin_burial(self, worker: Worker) -> None:
        self._tasks.start(self._bury(worker), name=f"bury {worker.run}/{worker.rank}")

    async def _bury(self, worker: Worker) -> None:
        process = worker.process
        assert process is not None
        process.end_group()
        if worker.speaks and not worker.greeted:
            # It may have said hello and ended before the hello was read.
            await asyncio.sleep(DRAIN_S / 5)
        if worker.line:
            try:
                async with asyncio.timeout(DRAIN_S):
                    await worker.line_closed.wait()
            except TimeoutError:
                log.info("line of a dead trainer is still open", run=worker.run, rank=worker.rank, pid=process.pid)
        how = process.reap()
        self._gone(worker, testimony.exited(worker, self._node, how), process.ended_ns)

    def _gone(self, worker: Worker, event: WorkerExited, observed_ns: int) -> None:
        if event.completed:
            self._completed[worker.key] = event
        self._report(event, observed_ns)
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]
        worker.ended.set()


def _session(pid: int) -> int:
    """The session of a process; 0 when it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
