"""Keeps a standby alive: a warm interpreter that forks trainers in tens of milliseconds.

Requests queue until it is ready. A standby that dies is started again, and requests that it had not answered are made
again, once: if the first fork did happen, its process is told from the second by its pid.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from orchestrator.node.child import Child, start_with_inherited_socket
from orchestrator.node.processes import Reaper, kill_unwatched

FORK_TIMEOUT_S = 60.0
RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
MAX_TRIES = 2

log = structlog.get_logger(__name__)


class ForkError(Exception):
    """No process was forked; the message says why."""


class _Answer(msgspec.Struct):
    type: str
    id: int = 0
    pid: int = 0
    error: str = ""
    import_s: float = 0.0


class _Request:
    def __init__(self, message: dict[str, object]) -> None:
        self.message = message
        self.tries = 0
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class Standby:
    """`command` is started with the number of its socket in HOLDFAST_STANDBY_FD. `run` must run for forks to happen."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log_path: Path, reaper: Reaper) -> None:
        self._command = command
        self._env = env
        self._log_path = log_path
        self._reaper = reaper
        self._child: Child | None = None
        self._ready = False
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}

    @property
    def pid(self) -> int:
        """Of the standby that runs; 0 when there is none."""
        return self._child.pid if self._child else 0

    @property
    def ready(self) -> bool:
        return self._ready

    async def fork(self, argv: Sequence[str], *, env: Mapping[str, str], log_path: Path, cwd: str) -> int:
        """Pid of a new child of this process that runs the trainer's command line. ForkError when there is none."""
        number = next(self._ids)
        message = {"type": "fork", "id": number, "argv": argv, "env": env, "log_path": str(log_path), "cwd": cwd}
        request = self._requests[number] = _Request(message)
        if self._ready:
            self._send(request)
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                return await request.pid
        except TimeoutError:
            if request.tries and self._child:
                self._child.kill()
            raise ForkError(
                f"the standby did not fork within {FORK_TIMEOUT_S:.0f} s; its output is in {self._log_path}"
            ) from None
        finally:
            del self._requests[number]

    async def run(self) -> None:
        """Keeps one standby until cancelled."""
        delay_s = RESTART_MIN_S
        while True:
            was_ready = False
            try:
                was_ready = await self._life()
            except OSError as error:
                log.error("standby not started", command=self._command[0], why=str(error))
            delay_s = RESTART_MIN_S if was_ready else min(2 * delay_s, RESTART_MAX_S)
            await asyncio.sleep(delay_s)

    async def _life(self) -> bool:
        """From the start of one standby to its end; True when it had become ready."""
        child = self._child = await start_with_inherited_socket(
            self._command,
            variable="HOLDFAST_STANDBY_FD",
            env=self._env,
            log_path=self._log_path,
            reaper=self._reaper,
        )
        was_ready = False
        try:
            async for line in child.line.received():
                self._take(line)
                was_ready = self._ready
        except ValueError:
            log.error("standby sent a line that is too long")
        finally:
            self._child, self._ready = None, False
            how = await child.bury()
        log.warning("standby ended", how=how, log=str(self._log_path))
        self._retry()
        return was_ready

    def _take(self, line: bytes) -> None:
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except msgspec.DecodeError as error:
            log.warning("standby not understood", why=str(error))
            return
        if answer.type == "ready":
            self._ready = True
            log.info("standby ready", pid=self.pid, import_s=answer.import_s)
            for waiting in self._requests.values():
                self._send(waiting)
            return
        request = self._requests.get(answer.id)
        if request is None or request.pid.done():
            if answer.type == "forked":
                log.info("unwanted fork ended", pid=answer.pid)
                kill_unwatched(answer.pid)
        elif answer.type == "forked":
            request.pid.set_result(answer.pid)
        elif answer.type == "fork_failed":
            request.pid.set_exception(ForkError(f"the standby could not fork: {answer.error}"))

    def _send(self, request: _Request) -> None:
        if self._child and not request.pid.done():
            request.tries += 1
            self._child.line.send(request.message)

    def _retry(self) -> None:
        for request in self._requests.values():
            if request.tries >= MAX_TRIES and not request.pid.done():
                why = f"the standby died {request.tries} times while it forked; its output is in {self._log_path}"
                request.pid.set_exception(ForkError(why))
