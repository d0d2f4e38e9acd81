"""Documents of source files, in an order that depends on their names alone."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.errors import SourceError, SourceNotFoundError

_PLAIN = (".txt", ".py")
_LINES = (".jsonl", ".jsonl.gz")


@dataclass
class Skipped:
    """What was left out, for the manifest and the user's eye."""

    undecodable_files: int = 0
    bad_lines: int = 0
    empty_documents: int = 0


def source_files(sources: list[Path]) -> list[Path]:
    """Files to read: sources in the order given, folders recursively by name, without hidden ones and linked folders.

    Raises SourceNotFoundError for a missing source, SourceError for a given file of an unknown kind.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            files += _inside(source)
        elif not source.exists():
            raise SourceNotFoundError(f"source {source} doesn't exist")
        elif source.name.endswith(_PLAIN + _LINES):
            files.append(source)
        else:
            raise SourceError(f"{source} is none of {', '.join(_PLAIN + _LINES)}")
    return files


def documents(files: list[Path], skip_bad: bool, skipped: Skipped) -> Iterator[str]:
    """Each text file is a document, as is each line of a jsonl file (its field "text"). Counts into `skipped`.

    Text files that are not UTF-8 are skipped. A bad line raises SourceError naming file and line, or with `skip_bad` is
    skipped. Empty documents are skipped.
    """
    for path in files:
        found = _lines(path, skip_bad, skipped) if path.name.endswith(_LINES) else _whole(path, skipped)
        for text in found:
            if text:
                yield text
            else:
                skipped.empty_documents += 1


def labelled_documents(files: list[Path], skipped: Skipped) -> Iterator[tuple[str, str]]:
    """(text, label) of each line of jsonl files; "" without the field "label". Raises SourceError for a bad line."""
    for path in files:
        for value in _objects(path, False, skipped):
            label = value.get("label", "")
            if not isinstance(label, str):
                raise SourceError(f"{path}: label {label!r} is no text")
            if value["text"]:
                yield value["text"], label
            else:
                skipped.empty_documents += 1


def _inside(folder: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if name.endswith(_PLAIN + _LINES) and not name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _whole(path: Path, skipped: Skipped) -> Iterator[str]:
    try:
        yield path.read_bytes().decode()
    except UnicodeDecodeError:
        skipped.undecodable_files += 1
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from error


def _lines(path: Path, skip_bad: bool, skipped: Skipped) -> Iterator[str]:
    return (value["text"] for value in _objects(path, skip_bad, skipped))


def _objects(path: Path, skip_bad: bool, skipped: Skipped) -> Iterator[dict]:
    number = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    yield _object(line)
                except ValueError as error:
                    if not skip_bad:
                        raise SourceError(
                            f"{path}, line {number}: {error}; --skip-bad leaves such lines out"
                        ) from error
                    skipped.bad_lines += 1
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} can't be read after line {number}: {error}") from error


def _object(line: bytes) -> dict:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError('no object with a string field "text"')
    try:
        value["text"].encode()
    except UnicodeEncodeError as error:
        raise ValueError("its text holds half a surrogate pair") from error
    return value
