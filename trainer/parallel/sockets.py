"""Finds the internet sockets of this process and shuts chosen ones down (Linux).

Neither gloo's abort() nor its shutdown() frees a rank that waits for a living peer; only a lost connection does.
Shutting down gloo's own connected sockets from another thread does it at once. Its listening socket must be left alone:
an error of accept ends the process.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SocketId:
    """A socket of this process. The inode tells it from a later one that was given the same descriptor."""

    fd: int
    inode: int


def open_sockets() -> frozenset[SocketId]:
    """All sockets that this process holds now."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # the listing's own descriptor, or one closed meanwhile
        if stat.S_ISSOCK(status.st_mode):
            found.add(SocketId(int(name), status.st_ino))
    return frozenset(found)


def cut(sockets: Iterable[SocketId]) -> int:
    """Shut down those that are still open, of the internet and connected; returns how many were. For any thread."""
    return sum(_cut(item) for item in sockets)


def _cut(item: SocketId) -> bool:
    try:
        duplicate = socket.socket(fileno=os.dup(item.fd))
    except OSError:
        return False
    with duplicate:
        try:
            if os.fstat(duplicate.fileno()).st_ino != item.inode:
                return False
            if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            duplicate.getpeername()  # raises for a listening socket
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True
