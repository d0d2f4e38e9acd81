"""One daemon a state folder: an exclusive flock on `daemon.lock`, freed by the kernel however the daemon ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from orchestrator.journal.errors import JournalError, JournalLockedError

LOCK_NAME = "daemon.lock"


class FolderLock:
    """Holds the folder from construction to `close`. The file names the holder's pid and stays when it is freed.

    The file is never unlinked: a process waiting on a removed file would lock nothing.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"can't open {path}: {error.strerror}. Make the state folder writable.") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = _read_pid(self._fd)
            os.close(self._fd)
            raise JournalLockedError(
                f"{folder} is in use by another daemon (pid {pid or 'unknown'}). Stop it, or name another folder.",
                pid,
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
