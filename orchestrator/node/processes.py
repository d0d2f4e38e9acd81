"""Processes of a node: started, watched through pidfds, reaped.

A pidfd shows a death within milliseconds and cannot mean another process that got the same number. Trainers are
children of this process although the standby forked them, because it is their child subreaper.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

PR_SET_CHILD_SUBREAPER = 36
STRAYS_KEPT = 1024
STRAY_INTERVAL_S = 1.0
_LEASH = Path(__file__).with_name("leash.py")


class Exit(msgspec.Struct, frozen=True):
    """How a process ended; both None when it was no child of ours."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal.Signals(self.signal).name}"
        return "ended" if self.code is None else f"exit code {self.code}"


def become_subreaper() -> None:
    """Descendants whose parent ends become children of this process. OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


class Process:
    """One watched process. `on_end` is called once, in the event loop, when it has ended and before it is reaped."""

    def __init__(self, pid: int, reaper: Reaper, on_end: Callable[[], None]) -> None:
        self.pid = pid
        self.ended_ns = 0
        self._reaper = reaper
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        try:
            self._fd = os.pidfd_open(pid)
            self._loop.add_reader(self._fd, self._fired)
        except ProcessLookupError:
            self._fd = -1
            self._loop.call_soon(self._fired)

    @property
    def alive(self) -> bool:
        return self.ended_ns == 0

    def send_signal(self, number: int) -> None:
        """A signal to this process alone; nothing happens when it has ended."""
        if self.alive and self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def send_signal_to_group(self, number: int) -> None:
        """A signal to the process and, if it leads a group, to the group. Only for workers, before they are reaped."""
        self.send_signal(number)
        # Until it is reaped its number is taken, so a group of that number is its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def end_group(self) -> None:
        """Kills what an ended child has left of its group. Nothing for others: their number may be another's by now."""
        if self._fd < 0:
            return
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self.send_signal_to_group(signal.SIGKILL)

    def reap(self) -> Exit:
        """How it ended, as known. Call once, after `on_end`."""
        self._reaper.forget(self)
        if self._fd < 0:
            return self._reaper.stray_exit(self.pid)
        try:
            result = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return Exit()
        finally:
            os.close(self._fd)
            self._fd = -1
        return _exit_of(result) if result else Exit()

    def _fired(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
        self.ended_ns = time.monotonic_ns()
        self._on_end()


class Reaper:
    """Makes watched processes, and reaps the zombies that nobody watches: grandchildren that lost their parent."""

    def __init__(self) -> None:
        self._watched: dict[int, Process] = {}
        self._strays: dict[int, Exit] = {}

    def watch(self, pid: int, on_end: Callable[[], None]) -> Process:
        """Watches a living process, a zombie child, or a child that was reaped as a stray a moment ago."""
        process = Process(pid, self, on_end)
        self._watched[pid] = process
        return process

    def forget(self, process: Process) -> None:
        if self._watched.get(process.pid) is process:
            del self._watched[process.pid]

    def stray_exit(self, pid: int) -> Exit:
        return self._strays.pop(pid, Exit())

    async def run(self) -> None:
        while True:
            self.reap_strays()
            await asyncio.sleep(STRAY_INTERVAL_S)

    async def end_children(self, timeout_s: float) -> None:
        """SIGKILL to every child there is, and to those that come to us when their parents end, until none is left."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while (pids := _children()) and time.monotonic_ns() < deadline_ns:
            for pid in pids:
                kill_unwatched(pid)
            await asyncio.sleep(0.005)
            self.reap_strays()

    def reap_strays(self) -> None:
        """Reaps until no child is a zombie or the next one is watched: that one's owner reaps it soon."""
        while True:
            try:
                zombie = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if zombie is None or zombie.si_pid in self._watched:
                return
            os.waitpid(zombie.si_pid, 0)
            # Kept: a trainer can end before the standby's word that it was forked is read.
            self._strays[zombie.si_pid] = _exit_of(zombie)
            if len(self._strays) > STRAYS_KEPT:
                del self._strays[next(iter(self._strays))]


def _exit_of(result: os.waitid_result) -> Exit:
    return Exit(code=result.si_status) if result.si_code == os.CLD_EXITED else Exit(signal=result.si_status)


def _children() -> list[int]:
    """Pids of this process's children, zombies included; none where the kernel does not tell."""
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids += map(int, (task / "children").read_text().split())
    return pids


def kill_unwatched(pid: int) -> None:
    """SIGKILL to a process that was just heard of and that nobody watches; a child is reaped as a stray."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None = None,
    stdio: socket.socket | None = None,
    keep: socket.socket | None = None,
) -> int:
    """Starts a program in a session of its own; returns its pid. OSError when it can't be started.

    Output goes to the end of `log_path`; with `stdio`, standard input and output are that socket. `keep` stays open in
    the program.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as log:
        popen = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=stdio.fileno() if stdio else subprocess.DEVNULL,
            stdout=stdio.fileno() if stdio else log,
            stderr=log,
            pass_fds=[keep.fileno()] if keep else [],
            start_new_session=True,
        )
    # `subprocess` would reap what it believes unfinished, and take the exit status from the pidfd's owner.
    popen.returncode = 0
    return popen.pid


def leashed(command: Sequence[str]) -> list[str]:
    """The command, made to die with this process: for programs that would not notice its death themselves."""
    return [sys.executable, "-S", "-E", str(_LEASH), str(os.getpid()), *command]
