"""Durable writes: what these return from is on the disk, not only in the page cache."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.errors import CheckpointError

_DISCARDED = ".discarded-"


def make_root(path: Path) -> None:
    """The folder in which checkpoints are kept. Raises CheckpointError when it can't be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"no place for checkpoints: {error.filename} can't be made: {error.strerror}") from error


def sync(path: Path) -> None:
    """fsync a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or whole and synced, even after a crash. Sync its folder to keep its name.

    Raises OSError.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def discard(folder: Path) -> bool:
    """Remove a folder, first by one rename, so that nobody sees (or commits) half of it. False when it is gone already.

    Raises OSError when it can't be renamed.
    """
    grave = folder.with_name(f"{_DISCARDED}{folder.name}-{uuid.uuid4().hex}")
    try:
        os.rename(folder, grave)
    except FileNotFoundError:
        return False
    shutil.rmtree(grave, ignore_errors=True)
    return True


def clear_discarded(root: Path) -> None:
    """Finish removals that a crash cut short."""
    with suppress(FileNotFoundError):
        for path in root.glob(f"{_DISCARDED}*"):
            shutil.rmtree(path, ignore_errors=True)
