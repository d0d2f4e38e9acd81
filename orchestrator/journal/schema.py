"""The journal's tables, and how a connection is opened.

SQLite in WAL mode with synchronous=FULL: a commit is on the disk before it returns, readers never wait for the writer,
and a half-written entry can't exist, since each entry is one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from orchestrator.journal.errors import JournalDamagedError, JournalError, JournalSchemaError

DB_NAME = "journal.db"
APPLICATION_ID = 0x484C4446  # "HLDF", in the file's header: tells our databases from others
SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    event TEXT NOT NULL,
    commands TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""


def open_writer(folder: Path) -> sqlite3.Connection:
    """The one connection that writes; makes the tables in a new file of mode 0600. Raises JournalError."""
    path = folder / DB_NAME
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"can't open {path}: {error}. Make the state folder writable.") from error
    try:
        _prepare(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise _damaged(path, error) from error
    except JournalError:
        db.close()
        raise
    return db


def open_reader(folder: Path) -> sqlite3.Connection:
    """A read-only connection, for use from one thread at a time. Raises JournalError."""
    path = folder / DB_NAME
    if not path.exists():
        raise JournalError(f"no journal at {path}. Name the state folder of a daemon.")
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        _check_version(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise _damaged(path, error) from error
    except JournalError:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables:
        _check_version(db, path)
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    if not tables:
        db.executescript(
            f"BEGIN;{_TABLES}PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
        )


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise JournalSchemaError(f"{path} is a database of another program. Name another state folder.")
    if version != SCHEMA_VERSION:
        raise JournalSchemaError(
            f"{path} has layout {version}, this version of Holdfast reads {SCHEMA_VERSION}. "
            "Start the version that wrote it, or name another state folder."
        )


def _damaged(path: Path, error: Exception) -> JournalDamagedError:
    return JournalDamagedError(
        f"{path} is damaged: {error}. Move it aside and restore a copy, or start with an empty state folder "
        "(running trainers are then unknown to the new daemon)."
    )
