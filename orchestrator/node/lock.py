"""One supervisor a node: a lock in the node's folder, held for as long as the process lives."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

PATIENCE_S = 5.0


class LockedError(Exception):
    """Another supervisor of this node runs."""


def hold_lock(node_dir: Path, stays: Callable[[], bool]) -> TextIO:
    """The lock, to be kept until the end of the process. LockedError when another process holds it.

    `stays` says whether that one is here to stay; one of the node's life before this ends by itself, and is awaited.
    """
    file = open(node_dir / "supervisor.lock", "a+")  # noqa: SIM115 - it stays open
    deadline = time.monotonic() + PATIENCE_S
    while not _locked(file):
        if stays() or time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise LockedError(f"process {holder} supervises {node_dir} already")
        time.sleep(0.05)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
