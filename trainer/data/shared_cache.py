"""Arrays that are dear to compute and the same for all processes: computed by one, read by all from a cache folder.

Readers use `read`, not a mapping: a file cut short under a mapping is a SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trainer.data.errors import DataError

_POLL_S = 0.05


class ArrayFile:
    """A flat array on the disk, of which slices are read. For any thread."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype = path, dtype
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # kept: it outlives the name
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size // dtype.itemsize

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Elements [start, stop). Raises DataError when the file ends before."""
        count = rows.stop - rows.start
        raw = os.pread(self._fd, count * self._dtype.itemsize, rows.start * self._dtype.itemsize)
        if len(raw) < count * self._dtype.itemsize:
            raise DataError(f"{self._path} was cut; remove it, it is computed again")
        return np.frombuffer(raw, self._dtype)


def shared_array(folder: Path, name: str, dtype: np.dtype, build: Callable[[], np.ndarray]) -> ArrayFile | np.ndarray:
    """What `build` gives, 1-D, from `folder`/`name`, which says all that the array depends on.

    The first process computes under a lock and renames the file into place; the others wait for it. Where the folder
    can't be written, each process holds the array in memory, after one line that says so.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                _write(path, build().astype(dtype, copy=False))
        return ArrayFile(path, dtype)
    except OSError as error:
        print(
            f"{path} can't be written ({error.strerror or error}): its array is kept in memory",
            file=sys.stderr,
            flush=True,
        )
        return build().astype(dtype, copy=False)


def _write(path: Path, array: np.ndarray) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with aside.open("wb") as file:
            array.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the path's lock file; the kernel frees it when its holder dies. Over at once when the path exists.

    A file system without locks only lets several processes compute the same.
    """
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        while not path.exists():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
            except OSError:
                break
        yield
    finally:
        os.close(lock)
