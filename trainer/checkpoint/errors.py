"""Errors of checkpoints. Their messages are for the user."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint can't be written or read."""


class CheckpointDamagedError(CheckpointError):
    """A committed checkpoint does not prove: some byte of it isn't what was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class CheckpointMismatchError(CheckpointError):
    """A sound checkpoint that doesn't hold what is asked of it: other parameters or shapes."""
