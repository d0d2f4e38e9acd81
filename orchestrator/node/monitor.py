"""Keeps the health monitor running and listens to it. A hanging driver hangs the monitor, never the supervisor.

A monitor that is silent is a finding, because no answer is evidence; one that was killed once is not.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from orchestrator.node import findings
from orchestrator.node.child import Child, start_with_socket_as_stdio
from orchestrator.node.findings import Novelty
from orchestrator.node.processes import Reaper
from orchestrator.recovery.events import Finding

SILENCE_S = 5.0
FIRST_ROUND_S = 30.0  # an interpreter and NVML start, perhaps on a machine that starts everything else as well
TICK_S = 0.25
PROBE_TIMEOUT_S = 10.0
RESTART_MIN_S = 0.25
RESTART_MAX_S = 30.0
RESTARTS_TO_REPORT = 3
RESTART_WINDOW_NS = 60 * 10**9

log = structlog.get_logger(__name__)


class _Said(msgspec.Struct):
    type: str
    id: str = ""
    ok: bool = False
    findings: tuple[Finding, ...] = ()
    cleared: bool = False
    error: str = ""


class _Probe:
    def __init__(self, message: dict[str, object]) -> None:
        self.message = message
        self.answer: asyncio.Future[tuple[bool, tuple[Finding, ...]]] = asyncio.get_running_loop().create_future()


class Monitor:
    """`on_findings` gets findings that are news. `run` must run for anything to happen."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        reaper: Reaper,
        nice: int,
        on_findings: Callable[[tuple[Finding, ...]], None],
    ) -> None:
        self._command = command
        self._env = env
        self._log_path = log_path
        self._reaper = reaper
        self._nice = nice
        self._on_findings = on_findings
        self._novelty = Novelty()
        self._child: Child | None = None
        self._rounds = 0
        self._silent_s = 0.0
        self._deaths_ns: deque[int] = deque()
        self._ids = itertools.count(1)
        self._probes: dict[str, _Probe] = {}

    @property
    def pid(self) -> int:
        """Of the monitor that runs; 0 when there is none."""
        return self._child.pid if self._child else 0

    def tell(self, message: dict[str, object]) -> bool:
        """inject, reset or reboot. False when no monitor runs."""
        if message["type"] in ("reset", "reboot"):
            self._novelty.forget()
        return self._child is not None and self._child.line.send(message)

    async def probe(self, *, idle: bool) -> tuple[bool, tuple[Finding, ...]]:
        """Whether the node is fit, and what was found. No answer in time: it is not.

        `idle` says that no trainer lives here, so that memory in use is a finding too.
        """
        number = f"{next(self._ids)}"
        probe = self._probes[number] = _Probe({"type": "probe", "id": number, "idle": idle})
        self.tell(probe.message)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await probe.answer
        except TimeoutError:
            return False, (findings.probe_silent(PROBE_TIMEOUT_S),)
        finally:
            del self._probes[number]
            self._novelty.forget()

    async def run(self) -> None:
        """Keeps one monitor until cancelled."""
        delay_s = RESTART_MIN_S
        while True:
            rounds = self._rounds
            try:
                how = await self._life()
            except OSError as error:
                how = f"not started: {error.strerror}"
            log.warning("monitor ended", how=how, log=str(self._log_path))
            self._note_death(how)
            delay_s = RESTART_MIN_S if self._rounds > rounds + 1 / TICK_S else min(2 * delay_s, RESTART_MAX_S)
            await asyncio.sleep(delay_s)

    async def _life(self) -> str:
        """From the start of one monitor to its end; says how it ended."""
        child = self._child = await start_with_socket_as_stdio(
            self._command, env=self._env, log_path=self._log_path, reaper=self._reaper, nice=self._nice
        )
        for probe in self._probes.values():
            child.line.send(probe.message)
        watch = asyncio.create_task(self._watch(child))
        try:
            async for line in child.line.received():
                self._take(line)
        except ValueError:
            log.error("monitor sent a line that is too long")
        finally:
            watch.cancel()
            self._child = None
            how = await child.bury()
        return how

    async def _watch(self, child: Child) -> None:
        """Counts its own ticks, not the clock: a supervisor that was itself held up blames nobody."""
        self._silent_s, before = 0.0, self._rounds
        while True:
            await asyncio.sleep(TICK_S)
            self._silent_s += TICK_S
            limit_s = SILENCE_S if self._rounds > before else FIRST_ROUND_S
            if self._silent_s > limit_s:
                self._tell_news((findings.monitor_silent(limit_s),))
                child.kill()
                return

    def _take(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line, type=_Said)
            found = msgspec.json.decode(line, type=Finding) if said.type == "finding" else None
        except msgspec.DecodeError as error:
            log.warning("monitor not understood", why=str(error), line=line[:200].decode("utf-8", "replace"))
            return
        if said.type == "round":
            self._rounds += 1
            self._silent_s = 0.0
        elif found and said.cleared:
            self._novelty.cleared(found)
        elif found:
            self._tell_news((found,))
        elif said.type == "probed" and (probe := self._probes.get(said.id)) and not probe.answer.done():
            probe.answer.set_result((said.ok, said.findings))
        elif said.type == "error":
            log.warning("monitor cannot", why=said.error)

    def _note_death(self, how: str) -> None:
        now_ns = time.monotonic_ns()
        self._deaths_ns.append(now_ns)
        while now_ns - self._deaths_ns[0] > RESTART_WINDOW_NS:
            self._deaths_ns.popleft()
        if len(self._deaths_ns) >= RESTARTS_TO_REPORT:
            self._tell_news((findings.monitor_dies(len(self._deaths_ns), how, str(self._log_path)),))

    def _tell_news(self, seen: tuple[Finding, ...]) -> None:
        now_ns = time.monotonic_ns()
        if news := tuple(finding for finding in seen if self._novelty.is_news(finding, now_ns)):
            self._on_findings(news)
