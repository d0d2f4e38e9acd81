"""Exit codes, and the one exception that carries them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    INVALID_SPEC = 3
    NOT_FOUND = 4
    NO_DAEMON = 5


class CliError(Exception):
    """Ends the command: `message` and `hint` go to stderr, `code` to the shell."""

    def __init__(self, message: str, hint: str = "", code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
