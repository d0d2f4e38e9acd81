"""A checkpoint's files, in a folder of a file system or below a URL, through one small interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.files import sync, write_whole


class FileStat(NamedTuple):
    """mtime_ns is 0 where the storage has none to rely on."""

    bytes: int
    mtime_ns: int


class Folder(Protocol):
    """The files of one checkpoint. Its text form is what users see. Every method may raise OSError, and no other."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    def names(self) -> list[str]:
        """Of its files, sorted."""

    def stat(self, file: str) -> FileStat:
        """Raises FileNotFoundError."""

    def read(self, file: str) -> bytes: ...

    def read_into(self, file: str, begin: int, into: memoryview, *, uncached: bool = False) -> int:
        """Fill `into` from byte `begin` on; the bytes read, fewer only at the file's end.

        uncached: from the medium, not from what this machine remembers of it, where the storage knows the difference.
        """

    def write(self, file: str, content: bytes) -> None:
        """A file that is either absent or whole, and durable."""


class PathFolder:
    """A folder of a file system that this process can open."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def stat(self, file: str) -> FileStat:
        found = (self.path / file).stat()
        return FileStat(found.st_size, found.st_mtime_ns)

    def read(self, file: str) -> bytes:
        return (self.path / file).read_bytes()

    def read_into(self, file: str, begin: int, into: memoryview, *, uncached: bool = False) -> int:
        handle = os.open(self.path / file, os.O_RDONLY)
        try:
            if uncached and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, begin, len(into), os.POSIX_FADV_DONTNEED)
            done = 0
            while done < len(into):
                got = os.preadv(handle, [into[done:]], begin + done)
                if got == 0:
                    break
                done += got
            return done
        finally:
            os.close(handle)

    def write(self, file: str, content: bytes) -> None:
        write_whole(self.path / file, content)
        sync(self.path)


class ObjectFolder:
    """Objects below a prefix of an fsspec file system. Whatever its library raises becomes an OSError."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self.filesystem = filesystem
        self.prefix = prefix.rstrip("/")

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.prefix))

    @property
    def name(self) -> str:
        return self.prefix.rpartition("/")[2]

    def names(self) -> list[str]:
        with StorageErrors():
            self.filesystem.invalidate_cache(self.prefix)
            return sorted(found.rpartition("/")[2] for found in self.filesystem.ls(self.prefix, detail=False))

    def stat(self, file: str) -> FileStat:
        with StorageErrors():
            self.filesystem.invalidate_cache(self.prefix)
            return FileStat(int(self.filesystem.info(self._key(file))["size"]), 0)

    def read(self, file: str) -> bytes:
        with StorageErrors():
            return self.filesystem.cat_file(self._key(file))

    def read_into(self, file: str, begin: int, into: memoryview, *, uncached: bool = False) -> int:
        with StorageErrors():
            content = self.filesystem.cat_file(self._key(file), start=begin, end=begin + len(into))
        into[: len(content)] = content
        return len(content)

    def write(self, file: str, content: bytes) -> None:
        with StorageErrors():
            self.filesystem.pipe_file(self._key(file), content)

    def _key(self, file: str) -> str:
        return f"{self.prefix}/{file}"


class StorageErrors:
    """Turns what a storage's library raises into OSError: botocore and its like have errors of their own."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (OSError, CheckpointError)):
            raise OSError(f"{type(error).__name__}: {error}") from error


AnyFolder: TypeAlias = Folder | Path | str


def as_folder(place: AnyFolder) -> Folder:
    """A folder for a path or a URL. Raises StorageError for a URL that can't be used here."""
    if isinstance(place, Path):
        return PathFolder(place)
    if not isinstance(place, str):
        return place
    if "://" not in place:
        return PathFolder(Path(place))
    from trainer.checkpoint.urls import open_url

    opened = open_url(place)
    return PathFolder(opened) if isinstance(opened, Path) else ObjectFolder(*opened)
