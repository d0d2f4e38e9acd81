"""What the API answers when it can't do what was asked: {"error", "hint"} and an HTTP status."""

from __future__ import annotations


class ApiError(Exception):
    """`error` is one sentence, `hint` says what to do about it."""

    status = 400

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint


class NotFoundError(ApiError):
    status = 404


class RefusedError(ApiError):
    """Well asked, but not in this state."""

    status = 409


class UnavailableError(ApiError):
    """Can't be done now, for example because a node doesn't answer."""

    status = 503
