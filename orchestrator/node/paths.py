"""Where a node's files and sockets are. Sockets live in a short folder: a Unix socket's path has at most 107 bytes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

SOCKET_PATH_BYTES = 107  # sun_path has 108 with the final NUL
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class PathError(Exception):
    """A folder is not safe to use, or a name is no name; the message says what to do."""


def runtime_dir(state_dir: Path) -> Path:
    """The folder for sockets of the cluster with this state folder; made when missing. PathError when unsafe."""
    base = Path("/tmp") / f"holdfast-{os.getuid()}"
    digest = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()
    for folder in (base, base / digest[:8]):
        folder.mkdir(mode=0o700, exist_ok=True)
        require_private(folder)
    return base / digest[:8]


def require_private(folder: Path) -> None:
    """PathError unless this is a real folder, ours, and closed to everybody else."""
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode):
        raise PathError(f"{folder} is not a folder: remove it")
    if info.st_uid != os.getuid():
        raise PathError(f"{folder} belongs to user {info.st_uid}, not to {os.getuid()}: have it removed")
    if info.st_mode & 0o077:
        raise PathError(
            f"{folder} has mode {stat.S_IMODE(info.st_mode):04o}, so others can reach the sockets in it: chmod 700"
        )


def control_socket(sockets: Path, node: str) -> Path:
    """Where the node's supervisor answers its agent."""
    return _socket(sockets, node, "control")


def worker_socket(sockets: Path, node: str) -> Path:
    """Where the node's trainers and stores talk to the supervisor."""
    return _socket(sockets, node, "worker")


def _socket(sockets: Path, node: str, kind: str) -> Path:
    path = sockets / f"{node}.{kind}"
    if "/" in node or len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        path = sockets / f"{hashlib.sha256(node.encode()).hexdigest()[:16]}.{kind}"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise PathError(f"the socket path {path} is longer than {SOCKET_PATH_BYTES} bytes: use a shorter folder")
    return path


def run_dir(node_dir: Path, run: str) -> Path:
    """The node's folder of a run. PathError for a name that is no run's, so that none leads elsewhere."""
    check_run_name(run)
    return node_dir / "runs" / run


def check_run_name(run: str) -> None:
    if not _RUN_NAME.fullmatch(run):
        raise PathError(f"{run!r} is no name of a run: letters, digits, '.', '_' and '-', at most 128")


def rank_log(node_dir: Path, run: str, attempt: int, rank: int) -> Path:
    return run_dir(node_dir, run) / f"attempt-{attempt}" / f"rank-{rank}.log"


def store_log(node_dir: Path, run: str, attempt: int) -> Path:
    return run_dir(node_dir, run) / f"attempt-{attempt}" / "store.log"
