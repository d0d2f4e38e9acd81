"""One supervisor a node: a lock in the node's folder, held for as long as the process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO


class LockedError(Exception):
    """Another supervisor of this node runs."""


def hold_lock(node_dir: Path) -> TextIO:
    """The lock, to be kept until the end of the process. LockedError when another process holds it."""
    path = node_dir / "supervisor.lock"
    file = open(path, "a+")  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise LockedError(f"process {holder} supervises {node_dir} already") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
