"""A helper process of the supervisor that talks over one socket: the standby, the health monitor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.node.lines import Line, line_over
from orchestrator.node.processes import Reaper, spawn


class Child:
    """A started helper. `line` ends when it ends or closes its side."""

    def __init__(self, pid: int, line: Line, reaper: Reaper) -> None:
        self.pid = pid
        self.line = line
        self._ended = asyncio.Event()
        self._process = reaper.watch(pid, self._ended.set)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    async def bury(self) -> str:
        """Ends it if it lives, reaps it, and says how it ended."""
        self.line.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), 0.1)
        self.kill()
        await self._ended.wait()
        return str(self._process.reap())


async def start_with_inherited_socket(
    command: Sequence[str], *, variable: str, env: Mapping[str, str], log_path: Path, reaper: Reaper
) -> Child:
    """The socket's number is in the environment variable. OSError when the program can't be started."""
    ours, theirs = socket.socketpair()
    with theirs:
        env = {**env, variable: str(theirs.fileno())}
        return await _start(command, ours, reaper, env=env, log_path=log_path, keep=theirs)


async def start_with_socket_as_stdio(
    command: Sequence[str], *, env: Mapping[str, str], log_path: Path, reaper: Reaper, nice: int
) -> Child:
    """The socket is standard input and output. OSError when the program can't be started."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = await _start(command, ours, reaper, env=env, log_path=log_path, stdio=theirs)
    if nice:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, nice)
    return child


async def _start(
    command: Sequence[str],
    ours: socket.socket,
    reaper: Reaper,
    *,
    env: Mapping[str, str],
    log_path: Path,
    stdio: socket.socket | None = None,
    keep: socket.socket | None = None,
) -> Child:
    ours.setblocking(False)
    try:
        pid = spawn(command, env=env, log_path=log_path, stdio=stdio, keep=keep)
    except OSError:
        ours.close()
        raise
    return Child(pid, await line_over(ours), reaper)
