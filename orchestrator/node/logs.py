"""Reads a rank's log for the daemon, in chunks."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.link.messages import LogChunk, ReadLog
from orchestrator.node.paths import PathError, rank_log, run_dir

MAX_CHUNK_BYTES = 256 * 1024
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]*)")


def read_chunk(node_dir: Path, request: ReadLog) -> LogChunk:
    """The asked part of the log as text, never more than 256 KiB; a negative offset counts from the end."""
    try:
        attempt = request.attempt or newest_attempt(node_dir, request.run, request.rank)
        data, next_offset = _read(rank_log(node_dir, request.run, attempt, request.rank), request.offset, request.limit)
    except (PathError, FileNotFoundError, OSError) as error:
        why = str(error) if isinstance(error, PathError) else "this node has no log of that run, rank and attempt"
        return LogChunk(request=request.request, attempt=request.attempt, text="", next_offset=0, error=why)
    text = data.decode("utf-8", errors="replace")
    return LogChunk(request=request.request, attempt=attempt, text=text, next_offset=next_offset)


def newest_attempt(node_dir: Path, run: str, rank: int) -> int:
    """Highest attempt of which this node has the rank's log; FileNotFoundError when there is none."""
    logs = run_dir(node_dir, run).glob(f"attempt-*/rank-{rank}.log")
    attempts = [int(match[1]) for log in logs if (match := _ATTEMPT.fullmatch(log.parent.name))]
    if not attempts:
        raise FileNotFoundError(run)
    return max(attempts)


def last_line(path: Path) -> str:
    """The last line with something on it, cut to 400 characters; empty when there is none."""
    try:
        data, _ = _read(path, -4096, 4096)
    except OSError:
        return ""
    lines = [line.strip() for line in data.decode("utf-8", errors="replace").splitlines()]
    return next((line[:400] for line in reversed(lines) if line), "")


def _read(path: Path, offset: int, limit: int) -> tuple[bytes, int]:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        begin = min(offset, size) if offset >= 0 else max(0, size + offset)
        file.seek(begin)
        data = file.read(max(0, min(limit, MAX_CHUNK_BYTES)))
    if begin + len(data) < size:
        data = _whole_characters(data)
    return data, begin + len(data)


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a UTF-8 character at the end: it comes whole with the next chunk."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return data[:-back] if length > back and back < len(data) else data
    return data
