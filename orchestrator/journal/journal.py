"""The journal on disk: every event, what was decided on it, and why; durable before anything is done.

Nothing secret gets in: events and commands hold no keys, tokens or environments.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from orchestrator.journal.entry import Entry, decode_commands, decode_event, encode_commands, encode_event
from orchestrator.journal.errors import JournalDamagedError, JournalError, JournalWriteError
from orchestrator.journal.lock import FolderLock
from orchestrator.journal.replay import Replay, replay
from orchestrator.journal.schema import DB_NAME, open_reader, open_writer
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Decision

_READ_BATCH = 1000


class Journal:
    """The one writer of a state folder. One thread appends; `reader` gives others a view of their own."""

    def __init__(self, folder: Path, lock: FolderLock, db: sqlite3.Connection) -> None:
        self.folder = folder
        self._lock = lock
        self._db = db
        self.seq, self.last_ns = db.execute(
            "SELECT coalesce(max(seq), 0), coalesce(max(at_ns), 0) FROM entries"
        ).fetchone()

    @classmethod
    def open(cls, folder: Path | str) -> Journal:
        """Lock the state folder (made with mode 0700 when missing) and open its journal.

        Raises JournalLockedError when another daemon holds the folder, and the other JournalErrors.
        """
        folder = Path(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"can't make the state folder {folder}: {error.strerror}.") from error
        lock = FolderLock(folder)
        try:
            return cls(folder, lock, open_writer(folder))
        except BaseException:
            lock.close()
            raise

    def append(self, event: Event, decision: Decision) -> int:
        """Write one decision; on the disk when this returns. Its seq. Raises JournalWriteError."""
        return self._insert(event, decision.state.epoch, encode_commands(decision.commands), decision.reason, "")

    def append_poison(self, event: Event, error: str, epoch: int) -> int:
        """Write an event that `decide` could not take. A replay leaves it out, as the controller did."""
        return self._insert(event, epoch, "[]", "", error or "unknown error")

    def replay(self) -> Replay:
        """Run `decide` over all entries again. Raises JournalDamagedError for one that does not read back."""
        with JournalReader(self.folder) as reader:
            return replay(reader.entries())

    def reader(self) -> JournalReader:
        return JournalReader(self.folder)

    def meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, key: str, value: str) -> None:
        """Facts about the cluster as a whole (its id, its address); durable when this returns."""
        self._write(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _insert(self, event: Event, epoch: int, commands: str, reason: str, error: str) -> int:
        seq = self.seq + 1
        row = (seq, event.at_ns, epoch, encode_event(event), commands, reason, error)
        self._write("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.seq, self.last_ns = seq, event.at_ns
        return seq

    def _write(self, sql: str, row: tuple[object, ...]) -> None:
        try:
            self._db.execute(sql, row)
        except sqlite3.Error as error:
            raise JournalWriteError(
                f"can't write {self.folder / DB_NAME}: {error}. Free space or mend the disk, then start the "
                "daemon again; trainers go on meanwhile."
            ) from error


class JournalReader:
    """A read-only view that needs no lock and never delays the writer. Safe to use from several threads."""

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / DB_NAME
        self._db = open_reader(Path(folder))
        self._mutex = threading.Lock()

    def read(self, after_seq: int = 0, limit: int = _READ_BATCH) -> list[Entry]:
        """Entries with seq > `after_seq`, oldest first, at most `limit`. Raises JournalDamagedError."""
        sql = "SELECT seq, at_ns, epoch, event, commands, reason, error FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"
        try:
            with self._mutex:
                rows = self._db.execute(sql, (after_seq, limit)).fetchall()
        except sqlite3.DatabaseError as error:
            raise JournalDamagedError(f"{self.path} can't be read after entry {after_seq}: {error}.") from error
        return [self._entry(row) for row in rows]

    def last_seq(self) -> int:
        with self._mutex:
            return self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]

    def entries(self, after_seq: int = 0) -> Iterator[Entry]:
        """All entries after `after_seq`, read in batches; entries may be appended meanwhile."""
        while batch := self.read(after_seq):
            yield from batch
            after_seq = batch[-1].seq

    def close(self) -> None:
        with self._mutex:
            self._db.close()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _entry(self, row: tuple) -> Entry:
        seq, at_ns, epoch, event, commands, reason, error = row
        try:
            return Entry(
                seq=seq, at_ns=at_ns, epoch=epoch, event=decode_event(event), commands=decode_commands(commands),
                reason=reason, error=error,
            )  # fmt: skip
        except (msgspec.DecodeError, UnicodeDecodeError) as why:
            raise JournalDamagedError(
                f"{self.path}: entry {seq} does not read back: {why}. "
                "Start the version that wrote it, or restore a copy."
            ) from why
