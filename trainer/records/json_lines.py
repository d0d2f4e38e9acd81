"""`log.jsonl`: one line a step, and one an evaluation, in the order of steps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.records.sink import Record

_BLOCK = 1 << 16


class JsonLines:
    """Appends whole lines; no step stands in the file twice.

    When an attempt goes on after step S, lines of later steps are moved to `log.superseded.jsonl`: they were of an attempt
    whose steps are made again. A line of a step that the file has already (a step finished during a recovery) is dropped. A
    torn last line, as a full disk leaves, is cut.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = _whole_bytes(self._fd)
        self._last: dict[str, int] = {}

    def begin(self, step: int) -> None:
        kept, superseded = self._end, []
        self._last = {}
        for begin, line in _lines_backwards(self._fd, self._end):
            kind, of_step = _parsed(line)
            if of_step > step:
                kept = begin
                superseded.append(line + b"\n")
                continue
            self._last.setdefault(kind, of_step)
            if kind == "step":
                break
        if superseded:
            with self._path.with_suffix(".superseded.jsonl").open("ab") as file:
                file.write(b"".join(reversed(superseded)))
            os.ftruncate(self._fd, kept)
            self._end = kept

    def write(self, record: Record) -> None:
        """Raises OSError; what was written of the line then is cut by the next."""
        kind, step = str(record["kind"]), int(str(record["step"]))
        if step <= self._last.get(kind, -1):
            return
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        os.ftruncate(self._fd, self._end)
        written = os.pwrite(self._fd, line, self._end)
        if written < len(line):
            os.ftruncate(self._fd, self._end)
            raise OSError(f"{self._path} takes no more: the disk is full")
        self._end += written
        self._last[kind] = step

    def has(self, kind: str, step: int) -> bool:
        """Whether a line of this kind and step, the last of its kind, is there."""
        return self._last.get(kind, -1) == step

    def close(self, wait_s: float) -> None:
        """Every line is written already; the file stays open for the next attempt."""


def _whole_bytes(fd: int) -> int:
    """Length of the file up to its last newline."""
    end = os.fstat(fd).st_size
    while end:
        begin = max(0, end - _BLOCK)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _lines_backwards(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its newline), from the last on. `end` is right behind a newline, or 0."""
    rest = b""  # a line that begins before `end`, with what follows it
    while end:
        begin = max(0, end - _BLOCK)
        rest = os.pread(fd, end - begin, begin) + rest
        head, *lines = rest.split(b"\n")
        offset = begin + len(rest)
        for line in reversed(lines if begin else [head, *lines]):
            offset -= len(line)
            if line:
                yield offset, line
            offset -= 1
        rest = head + b"\n"
        end = begin


def _parsed(line: bytes) -> tuple[str, int]:
    """(kind, step) of a line; of one that isn't ours: ("", -1), which is kept."""
    try:
        record = json.loads(line)
        return str(record["kind"]), int(record["step"])
    except (ValueError, KeyError, TypeError):
        return "", -1
