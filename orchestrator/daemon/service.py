"""What the HTTP API may ask of the daemon. Runs in the event loop's thread; decisions come from the controller's."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.api.errors import NotFoundError, RefusedError, UnavailableError
from orchestrator.api.live import live_view
from orchestrator.api.service import LogText, Submitted
from orchestrator.daemon.cluster import LiveCluster
from orchestrator.daemon.watcher import Watcher
from orchestrator.files import write_atomic
from orchestrator.journal.entry import Entry
from orchestrator.journal.journal import JournalReader
from orchestrator.link.hub import Hub
from orchestrator.link.messages import Inject, LogChunk, ReadLog
from orchestrator.recovery.events import (
    AnyEvent,
    CommandFailed,
    Event,
    FaultInjected,
    NodeQuarantined,
    NodeReadmitted,
    RunCancelled,
    RunSubmitted,
)
from orchestrator.recovery.state import Decision, RunPhase, State
from orchestrator.spec.load import parse_spec
from orchestrator.spec.model import RunSpec

DECISION_TIMEOUT_S = 20.0
LOG_TIMEOUT_S = 5.0
INJECTION_TIMEOUT_S = 3.0
ENDED = frozenset({RunPhase.COMPLETED, RunPhase.FAILED, RunPhase.CANCELLED})


class DaemonService:
    """Implements orchestrator.api.service.Service."""

    def __init__(
        self,
        state_dir: Path,
        cluster: LiveCluster,
        reader: JournalReader,
        state: Callable[[], State],
        stop: Callable[[], None],
    ) -> None:
        self._runs_dir = state_dir / "runs"
        self._cluster = cluster
        self._reader = reader
        self._state = state
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._seq = reader.last_seq()
        self._appended = asyncio.Event()
        self._submitting = asyncio.Lock()
        self._log_requests: dict[int, asyncio.Future[LogChunk]] = {}
        self._request_ids = itertools.count(1)
        self._injections: dict[str, asyncio.Future[str]] = {}  # by node: why it was refused, or nothing
        self.hub: Hub
        self.watcher: Watcher

    # --- reading

    def state(self) -> State:
        return self._state()

    def now_ns(self) -> int:
        return self._cluster.now_ns()

    def entries(self, after: int, limit: int) -> Sequence[Entry]:
        return self._reader.read(after, limit)

    def last_seq(self) -> int:
        return self._seq

    async def wait_entry(self, after: int, timeout_s: float) -> None:
        if self._seq > after:
            return
        try:
            await asyncio.wait_for(self._appended.wait(), timeout_s)
        except TimeoutError:
            return

    def live(self, run: str) -> dict[str, Any]:
        return live_view(self.watcher.live(run))

    def spec(self, run: str) -> dict[str, Any]:
        path = self._runs_dir / run / "spec.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def workload(self, run: str) -> dict[str, Any] | None:
        """How nodes launch the run; read at each order, so that a new daemon needs no memory of it."""
        path = self._runs_dir / run / "workload.json"
        return json.loads(path.read_text()) if path.exists() else None

    # --- acting

    async def submit(self, text: str, file: str) -> Submitted:
        spec = await asyncio.to_thread(parse_spec, text, file)
        async with self._submitting:
            run = self._free_name(spec.name)
            write_run(spec, self._runs_dir / run)
            decision = await self._decide(RunSubmitted(run=run, plan=spec.plan()))
        known = len(self._state().nodes)
        warnings: tuple[str, ...] = ()
        if spec.nodes > known:
            warnings = (f"It asks for {spec.nodes} nodes; this cluster has {known}. It waits until there are enough.",)
        return Submitted(run=run, reason=decision.reason, warnings=warnings)

    async def cancel(self, run: str, who: str, why: str) -> str:
        known = self._state().runs.get(run)
        if known is None:
            raise NotFoundError(f"There is no run '{run}'.", "`holdfast status` lists them")
        if known.phase in ENDED:
            raise RefusedError(f"The run '{run}' is already {known.phase}.")
        return (await self._decide(RunCancelled(run=run, who=who, why=why))).reason

    async def quarantine(self, node: str, who: str, why: str) -> str:
        self._known(node)
        return (await self._decide(NodeQuarantined(node=node, who=who, why=why))).reason

    async def readmit(self, node: str, who: str, why: str) -> str:
        self._known(node)
        return (await self._decide(NodeReadmitted(node=node, who=who, why=why))).reason

    async def inject(self, node: str, fault: str, details: dict[str, int | str], who: str) -> str:
        self._known(node)
        answer = self._injections[node] = self._loop.create_future()
        try:
            if not self.hub.send(node, Inject(fault=fault, details=details, who=who)):
                raise UnavailableError(f"The node '{node}' is not connected.", "`holdfast node list` shows which are")
            refused = await asyncio.wait_for(answer, INJECTION_TIMEOUT_S)
        except TimeoutError:
            return f"The fault '{fault}' was sent to {node}, which has not confirmed it."
        finally:
            self._injections.pop(node, None)
        if refused:
            raise RefusedError(f"{node} did not do '{fault}': {refused}.")
        return f"The fault '{fault}' begins on {node}."

    async def read_log(self, run: str, rank: int, attempt: int, offset: int) -> LogText:
        known = self._state().runs[run]
        places = known.placement or known.ran_on
        node = places[rank // known.plan.ranks_per_node] if places else ""
        # An earlier attempt may have run elsewhere.
        others = sorted(set(self.hub.connections) - {node}) if attempt else []
        if not node and not others:
            what = "has not started yet" if not known.attempt else f"has no node for rank {rank} now"
            raise UnavailableError(f"The run '{run}' {what}.", "name an --attempt to read an earlier log")
        error = ""
        for name in filter(None, (node, *others)):
            chunk = await self._log_of(name, ReadLog(request=0, run=run, rank=rank, attempt=attempt, offset=offset))
            if not chunk.error:
                return LogText(text=chunk.text, next_offset=chunk.next_offset, attempt=chunk.attempt)
            error = error or chunk.error
        raise NotFoundError(f"{error}.")

    async def _log_of(self, node: str, asked: ReadLog) -> LogChunk:
        request = next(self._request_ids)
        future = self._log_requests[request] = self._loop.create_future()
        try:
            if not self.hub.send(node, msgspec.structs.replace(asked, request=request)):
                raise UnavailableError(f"{node}, which has the log of rank {asked.rank}, is not connected.")
            return await asyncio.wait_for(future, LOG_TIMEOUT_S)
        except TimeoutError:
            why = f"{node} did not send the log of rank {asked.rank} in {LOG_TIMEOUT_S:.0f} s."
            raise UnavailableError(why) from None
        finally:
            del self._log_requests[request]

    async def shutdown(self) -> None:
        self._stop()

    # --- what others tell the service

    def reported(self, node: str, event: AnyEvent) -> None:
        """A report of a supervisor's came; one may be the answer to an injection."""
        answer = self._injections.get(node)
        if answer is None or answer.done():
            return
        if isinstance(event, FaultInjected):
            answer.set_result("")
        elif isinstance(event, CommandFailed) and event.command == "inject":
            answer.set_result(event.error)

    def log_chunk(self, _: str, chunk: LogChunk) -> None:
        future = self._log_requests.get(chunk.request)
        if future and not future.done():
            future.set_result(chunk)

    def decided(self, _: Event, __: Decision) -> None:
        """A listener of the controller's, called in its thread."""
        self._loop.call_soon_threadsafe(self._note_entry)

    def _note_entry(self) -> None:
        self._seq = self._reader.last_seq()
        self._appended.set()
        self._appended = asyncio.Event()

    async def _decide(self, event: Event) -> Decision:
        """Put an operator's event to the core and wait until its decision is durable."""
        future: asyncio.Future[Decision | None] = self._loop.create_future()

        def settled(decision: Decision | None) -> None:
            self._loop.call_soon_threadsafe(_settle, future, decision)

        self._cluster.put(event, settled)
        # The controller settles an event when it asks for the next one; woken, it asks at once.
        self._cluster.wake()
        try:
            decision = await asyncio.wait_for(future, DECISION_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError("The controller did not decide in time.", "the daemon's log says why") from None
        if decision is None:
            raise UnavailableError("The controller could not decide on this.", "the daemon's log has the error")
        return decision

    def _known(self, node: str) -> None:
        if node not in self._state().nodes:
            names = ", ".join(sorted(self._state().nodes)[:12]) or "none yet"
            raise NotFoundError(f"There is no node '{node}'.", f"known nodes: {names}")

    def _free_name(self, name: str) -> str:
        taken = self._state().runs
        if name not in taken and not (self._runs_dir / name).exists():
            return name
        numbers = itertools.count(2)
        return next(f"{name}-{n}" for n in numbers if not (self._runs_dir / f"{name}-{n}").exists())


def write_run(spec: RunSpec, run_dir: Path) -> None:
    """The files that nodes and later daemons read of a run. Raises UnavailableError."""
    try:
        run_dir.mkdir(parents=True, mode=0o700)
        spec.write_files(run_dir)
        write_atomic(run_dir / "workload.json", json.dumps(spec.workload(run_dir)))
        write_atomic(run_dir / "spec.json", json.dumps(spec.public()))
    except OSError as error:
        why = f"The run's folder {run_dir} can't be written: {error.strerror}."
        raise UnavailableError(why, "nothing was queued") from None


def _settle(future: asyncio.Future[Decision | None], decision: Decision | None) -> None:
    if not future.done():
        future.set_result(decision)
