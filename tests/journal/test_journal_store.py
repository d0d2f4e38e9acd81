"""The journal on disk: what goes in comes out, one writer a folder, clear words when something is wrong."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sqlite3
import threading

import pytest

from orchestrator.journal.errors import (
    JournalDamagedError,
    JournalError,
    JournalLockedError,
    JournalSchemaError,
    JournalWriteError,
)
from orchestrator.journal.journal import Journal, JournalReader
from orchestrator.recovery.commands import JoinGang, ProbeNode
from orchestrator.recovery.events import Finding, NodeFindings, NodeReady
from orchestrator.recovery.state import Decision, State

READY = NodeReady(at_ns=7, node="n0", gpus=8, boot_id="b", workers=(("run", 2, 1),))
XID = Finding(check="xid", cause="xid_48", severity="fatal", action="reset_gpu", sentence="GPU 3 reports XID 48", gpu=3)
FOUND = NodeFindings(at_ns=9, node="n0", findings=(XID,))
LATER = NodeReady(at_ns=11, node="n1", gpus=8, boot_id="b")
COMMANDS = (
    ProbeNode(node="n1", purpose="preflight", run="run", attempt=3),
    JoinGang(
        node="n0", run="run", attempt=3, ranks=(0, 1), world_size=4, replicas=2, shards=2, store_host="h", store_port=1,
        restore="peers",
    ),
)  # fmt: skip


def decision(*commands, epoch: int = 5) -> Decision:
    return Decision(state=State(epoch=epoch), commands=commands, reason="it was so")


def test_entries_come_back_as_they_were_written(tmp_path):
    with Journal.open(tmp_path) as journal:
        assert journal.append(READY, decision()) == 1
        assert journal.append(FOUND, decision(*COMMANDS)) == 2
        assert journal.append_poison(LATER, "ValueError: no", 5) == 3
    with Journal.open(tmp_path) as journal, journal.reader() as reader:
        first, second, third = reader.read()
        assert (journal.seq, journal.last_ns, reader.last_seq()) == (3, 11, 3)
    assert (first.seq, first.at_ns, first.epoch, first.event, first.commands) == (1, 7, 5, READY, ())
    assert (second.event, second.commands, second.reason, second.error) == (FOUND, COMMANDS, "it was so", "")
    assert (third.event, third.error, third.commands) == (LATER, "ValueError: no", ())


def test_an_entry_is_visible_to_a_reader_once_append_has_returned(tmp_path):
    with Journal.open(tmp_path) as journal, journal.reader() as reader:
        assert reader.read() == []
        journal.append(READY, decision())
        assert [entry.seq for entry in reader.read()] == [1]


def test_read_gives_pages(tmp_path):
    with Journal.open(tmp_path) as journal, journal.reader() as reader:
        for _ in range(7):
            journal.append(READY, decision())
        assert [entry.seq for entry in reader.read(after_seq=2, limit=3)] == [3, 4, 5]
        assert [entry.seq for entry in reader.entries(after_seq=5)] == [6, 7]


def test_a_reader_works_in_another_thread_while_entries_are_appended(tmp_path):
    total = 60
    with Journal.open(tmp_path) as journal, journal.reader() as reader:
        seen: list[int] = []

        def follow() -> None:
            while len(seen) < total:
                seen.extend(entry.seq for entry in reader.read(after_seq=len(seen)))

        thread = threading.Thread(target=follow)
        thread.start()
        for _ in range(total):
            journal.append(READY, decision())
        thread.join(60)
    assert seen == list(range(1, total + 1))


def test_a_reader_cannot_write(tmp_path):
    with Journal.open(tmp_path):
        db = sqlite3.connect(f"file:{tmp_path}/journal.db?mode=ro", uri=True)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM entries")
        db.close()


def test_a_second_daemon_is_refused_and_told_who_holds_the_folder(tmp_path):
    with Journal.open(tmp_path), pytest.raises(JournalLockedError, match=f"pid {os.getpid()}") as refused:
        Journal.open(tmp_path)
    assert refused.value.pid == os.getpid()
    Journal.open(tmp_path).close()


def test_folder_and_files_are_the_owners_alone(tmp_path):
    folder = tmp_path / "deep" / "state"
    with Journal.open(folder) as journal:
        journal.append(READY, decision())
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert {"journal.db", "daemon.lock"} <= set(modes)


def test_every_commit_is_synced_to_the_disk(tmp_path):
    """WAL alone survives a dead process; FULL also survives a dead machine."""
    with Journal.open(tmp_path) as journal:
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_meta_outlives_the_daemon(tmp_path):
    with Journal.open(tmp_path) as journal:
        assert journal.meta("cluster_id") is None
        journal.set_meta("cluster_id", "a")
        journal.set_meta("cluster_id", "b")
    with Journal.open(tmp_path) as journal:
        assert journal.meta("cluster_id") == "b"


def rewrite(tmp_path, *statements: str) -> None:
    with Journal.open(tmp_path) as journal:
        for _ in range(3):
            journal.append(READY, decision())
    db = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def test_a_newer_layout_is_refused(tmp_path):
    rewrite(tmp_path, "PRAGMA user_version=99")
    with pytest.raises(JournalSchemaError, match=r"layout 99.*reads 1.*another state folder"):
        Journal.open(tmp_path)
    with pytest.raises(JournalSchemaError):
        JournalReader(tmp_path)


def test_a_database_of_another_program_is_refused(tmp_path):
    rewrite(tmp_path, "PRAGMA application_id=1")
    with pytest.raises(JournalSchemaError, match="another program"):
        Journal.open(tmp_path)


def test_a_file_that_is_no_database_is_called_damaged_and_the_lock_is_freed(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"no database at all" * 100)
    for _ in range(2):
        with pytest.raises(JournalDamagedError, match=r"journal\.db is damaged.*restore a copy"):
            Journal.open(tmp_path)


def test_overwritten_pages_are_found_when_the_journal_is_opened(tmp_path):
    rewrite(tmp_path)
    path = tmp_path / "journal.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(JournalDamagedError):
        Journal.open(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE entries SET event = \'{"kind": "comet"}\' WHERE seq = 2',
        "UPDATE entries SET commands = '[' WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 2",
        "UPDATE entries SET at_ns = 1 WHERE seq = 2",
    ],
)
def test_a_replay_names_the_entry_that_does_not_read_back(tmp_path, statement):
    rewrite(tmp_path, statement)
    with Journal.open(tmp_path) as journal, pytest.raises(JournalDamagedError, match=r"entry [23]"):
        journal.replay()


def test_a_missing_journal_is_said_to_be_missing(tmp_path):
    with pytest.raises(JournalError, match="no journal at"):
        JournalReader(tmp_path)


def test_a_state_folder_that_cannot_be_made_is_an_error_for_users(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="can't make the state folder"):
        Journal.open(tmp_path / "file" / "state")


def _fill_up(folder, answers) -> None:
    with Journal.open(folder) as journal:
        journal.append(READY, decision())
        size = (folder / "journal.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            journal.append(READY, decision())
        except JournalWriteError as error:
            answers.put((str(error), journal.seq))


def test_a_full_disk_is_an_error_and_leaves_what_was_written(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_fill_up, args=(tmp_path, answers))
    process.start()
    message, seq = answers.get(timeout=60)
    process.join(60)
    assert "trainers go on" in message
    assert seq == 1
    with JournalReader(tmp_path) as reader:
        assert [entry.seq for entry in reader.read()] == [1]
