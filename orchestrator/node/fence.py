"""Who may command this node: the highest epoch it has obeyed, on disk, and the newest attempt of each run."""

from __future__ import annotations

import os
from pathlib import Path


class FenceError(Exception):
    """The epoch on disk can't be read: without it an old daemon could command."""


class Fence:
    """FenceError when the file at `path` is there but holds no epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.epoch = int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError) as error:
            raise FenceError(
                f"cannot read the epoch in {path} ({error}): remove it if no older daemon can be alive"
            ) from None
        self._attempts: dict[str, int] = {}

    def admit(self, epoch: int) -> bool:
        """False for an epoch that is over. A new one is on disk before this returns."""
        if epoch > self.epoch:
            self._write(epoch)
            self.epoch = epoch
        return epoch == self.epoch

    def admit_attempt(self, run: str, attempt: int) -> bool:
        """False for an attempt that is over."""
        self._attempts[run] = max(attempt, self._attempts.get(run, 0))
        return attempt == self._attempts[run]

    def _write(self, epoch: int) -> None:
        aside = self._path.with_name(self._path.name + ".new")
        with open(aside, "w") as file:
            file.write(f"{epoch}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
