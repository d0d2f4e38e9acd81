"""Shard files block by block, in parallel: digested while they are written, checked while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

from trainer.checkpoint.digest import bytes_digest
from trainer.checkpoint.errors import CheckpointDamagedError, SaveCancelledError
from trainer.checkpoint.folders import AnyFolder, as_folder
from trainer.checkpoint.manifest import Sidecar

# Hashing and I/O release the interpreter's lock. Eight ranks share a node's cores and its disk.
THREADS = min(8, os.cpu_count() or 1)


class Target(NamedTuple):
    """Bytes [begin, begin + len(into)) of a file, and where they are wanted."""

    begin: int
    into: memoryview


class Source(Protocol):
    """The bytes of a shard's file, wherever they come from."""

    @property
    def size(self) -> int: ...

    def block(self, begin: int, size: int) -> memoryview:
        """Bytes [begin, begin + size), fewer at the end. Raises OSError."""


class MemorySource:
    def __init__(self, memory: memoryview) -> None:
        self.memory = memory

    @property
    def size(self) -> int:
        return len(self.memory)

    def block(self, begin: int, size: int) -> memoryview:
        return self.memory[begin : begin + size]


class FileSource:
    """An open file, which stays readable when its name is removed. `close` it."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._handle).st_size

    def block(self, begin: int, size: int) -> memoryview:
        return memoryview(os.pread(self._handle, size, begin))

    def close(self) -> None:
        os.close(self._handle)


def write_blocks(path: Path, source: Source, block_bytes: int, cancelled: Event) -> list[str]:
    """Write and sync a file; the SHA-256 of its blocks, taken while they are written.

    Raises OSError, and SaveCancelledError once cancelled.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(begin: int) -> str:
        check_running(cancelled)
        block = source.block(begin, block_bytes)
        pwrite_all(handle, block, begin)
        return bytes_digest(block)

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            digests = list(_stopping_at_errors(pool, write, range(0, source.size, block_bytes)))
        check_running(cancelled)
        os.fsync(handle)
    finally:
        os.close(handle)
    return digests


def read_targets(path: AnyFolder, sidecar: Sidecar, targets: Iterable[Target], threads: int = THREADS) -> None:
    """Fill the targets from a shard's file, reading and checking each block that they touch once.

    Raises CheckpointDamagedError for a block that can't be read or isn't what was written.
    """
    by_block: dict[int, list[Target]] = {}
    size = sidecar.block_bytes
    for target in targets:
        for block in range(target.begin // size, -(-(target.begin + len(target.into)) // size)):
            by_block.setdefault(block, []).append(target)

    def fill(block: int) -> None:
        content = read_block(path, sidecar, block)
        for begin, into in by_block[block]:
            low, high = max(begin, block * size), min(begin + len(into), block * size + len(content))
            into[low - begin : high - begin] = content[low - block * size : high - block * size]

    with ThreadPoolExecutor(threads) as pool:
        list(_stopping_at_errors(pool, fill, sorted(by_block)))


def prove_blocks(
    path: AnyFolder, sidecar: Sidecar, check: Callable[[], object] = lambda: None, threads: int = THREADS
) -> None:
    """Read a shard's whole file from its medium and check it; `check` may raise to end it early.

    Raises CheckpointDamagedError.
    """
    folder = as_folder(path)
    check_size(folder, sidecar)

    def prove(block: int) -> None:
        check()
        read_block(folder, sidecar, block, uncached=True)

    with ThreadPoolExecutor(threads) as pool:
        list(_stopping_at_errors(pool, prove, range(len(sidecar.blocks))))


def check_size(path: AnyFolder, sidecar: Sidecar) -> None:
    """Raises CheckpointDamagedError when a shard's file is gone or has another size than its sidecar says."""
    try:
        size = as_folder(path).stat(sidecar.file).bytes
    except OSError as error:
        raise CheckpointDamagedError(path, f"{sidecar.file} can't be read: {error.strerror or error}") from error
    if size != sidecar.bytes:
        raise CheckpointDamagedError(path, f"{sidecar.file} has {size} bytes instead of {sidecar.bytes}")


def read_block(path: AnyFolder, sidecar: Sidecar, block: int, *, uncached: bool = False) -> memoryview:
    """One block of a shard's file, checked. Raises CheckpointDamagedError."""
    begin = block * sidecar.block_bytes
    content = memoryview(bytearray(min(sidecar.block_bytes, sidecar.bytes - begin)))
    try:
        got = as_folder(path).read_into(sidecar.file, begin, content, uncached=uncached)
    except OSError as error:
        raise CheckpointDamagedError(path, f"{sidecar.file} can't be read: {error.strerror or error}") from error
    if got < len(content):
        raise CheckpointDamagedError(path, f"{sidecar.file} ends at byte {begin + got} of {sidecar.bytes}")
    if bytes_digest(content) != sidecar.blocks[block]:
        where = f"bytes {begin} to {begin + len(content)}"
        raise CheckpointDamagedError(path, f"{sidecar.file} has another digest in {where} than when it was written")
    return content


def check_running(cancelled: Event) -> None:
    """Raises SaveCancelledError once cancelled."""
    if cancelled.is_set():
        raise SaveCancelledError


def pwrite_all(handle: int, block: memoryview, begin: int) -> None:
    """Write all of it at this offset. Raises OSError."""
    done = 0
    while done < len(block):
        done += os.pwrite(handle, block[done:], begin + done)


def _stopping_at_errors(pool: ThreadPoolExecutor, work: Callable, items: Iterable) -> Iterable:
    """Results in order; what was not begun when the first error is seen is dropped."""
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
