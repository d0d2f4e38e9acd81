"""Errors of checkpoints. Their messages are for the user."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint can't be written or read."""


class CheckpointDamagedError(CheckpointError):
    """A committed checkpoint does not prove: some byte of it isn't what was written. `path`: its folder or URL."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class CheckpointMismatchError(CheckpointError):
    """A sound checkpoint that doesn't hold what is asked of it: other parameters or shapes."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint of another version: never passed over, as a run would begin anew without a word."""


class SaveRefusedError(CheckpointError):
    """This save can't or must not be committed."""


class SaveCancelledError(SaveRefusedError):
    """Its writer was told to give up."""

    def __init__(self) -> None:
        super().__init__("cancelled")
