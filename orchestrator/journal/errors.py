"""What can be wrong with a journal. Every message says what, where, and what to do."""

from __future__ import annotations


class JournalError(Exception):
    """Base of all; its text is for users."""


class JournalLockedError(JournalError):
    """Another daemon holds the state folder. `pid` is 0 when it can't be told."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class JournalDamagedError(JournalError):
    """The file is not a database, or its content does not read back."""


class JournalSchemaError(JournalError):
    """The file is of another program or of another version's layout."""


class JournalWriteError(JournalError):
    """An entry could not be made durable: disk full, read-only, I/O error."""


class JournalDivergedError(JournalError):
    """This version's `decide` does not reproduce what the journal recorded."""
