from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from trainer.parallel.layout import Layout
from trainer.protocol.client import NO_SUPERVISOR_EXIT, WorkerClient
from trainer.protocol.desk import Desk, Join

JOIN = {
    "type": "join",
    "attempt": 3,
    "rank": 1,
    "world_size": 4,
    "replicas": 2,
    "shards": 2,
    "store": {"host": "127.0.0.1", "port": 9},
    "restore": "peers",
    "log_path": "",
}


class FakeGang:
    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.aborted: list[str] = []

    def abort(self, why: str) -> None:
        self.aborted.append(why)


class DeskCase:
    def __init__(self) -> None:
        self.left: list[tuple[int, str]] = []
        self.stops = 0
        self.desk = Desk(lambda attempt, why: self.left.append((attempt, why)), self._stop)

    def _stop(self) -> None:
        self.stops += 1

    def join(self, attempt: int) -> None:
        self.desk.handle({**JOIN, "attempt": attempt})

    def leave(self, attempt: int) -> None:
        self.desk.handle({"type": "leave", "attempt": attempt, "why": "because"})

    def enter(self, attempt: int) -> FakeGang:
        assert self.desk.next_join().attempt == attempt
        gang = FakeGang(attempt)
        self.desk.enter(gang)
        return gang


def test_a_join_names_the_place_of_a_rank() -> None:
    join = Join.from_message({**JOIN, "something_new": 1})
    assert join.layout == Layout(rank=1, replicas=2, shards=2)
    assert (join.attempt, join.store_host, join.store_port, join.restore) == (3, "127.0.0.1", 9, "peers")


@pytest.mark.parametrize("change", [{"world_size": 5}, {"rank": 4}, {"restore": "magic"}, {"shards": 0}])
def test_an_unsound_join_is_refused(change: dict) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - four different sentences
        Join.from_message({**JOIN, **change})


def test_leave_aborts_the_gang_of_that_attempt() -> None:
    case = DeskCase()
    case.join(3)
    gang = case.enter(3)
    case.leave(2)
    assert gang.aborted == []
    case.leave(3)
    assert gang.aborted == ["because"]
    assert case.left == []


def test_leave_is_answered_again_by_one_that_is_out() -> None:
    case = DeskCase()
    case.leave(1)
    case.join(3)
    case.enter(3)
    case.desk.exit()
    case.leave(3)
    assert case.left == [(1, "because"), (3, "because")]


def test_a_leave_between_join_and_gang_is_not_lost() -> None:
    case = DeskCase()
    case.join(3)
    assert case.desk.next_join().attempt == 3
    case.leave(3)
    gang = FakeGang(3)
    case.desk.enter(gang)
    assert gang.aborted


def test_a_newer_join_implies_leave() -> None:
    case = DeskCase()
    case.join(3)
    gang = case.enter(3)
    case.join(4)
    assert gang.aborted
    case.desk.exit()
    assert case.enter(4).aborted == []


def test_old_joins_are_ignored() -> None:
    case = DeskCase()
    case.join(3)
    gang = case.enter(3)
    case.join(3)
    case.join(2)
    assert gang.aborted == []
    case.leave(5)
    case.desk.exit()
    case.join(5)
    case.join(6)
    assert case.desk.next_join().attempt == 6


def test_a_leave_takes_back_a_join_not_begun() -> None:
    case = DeskCase()
    case.join(3)
    case.leave(3)
    case.join(4)
    assert case.desk.next_join().attempt == 4
    assert case.left == [(3, "because")]


def test_a_checkpoint_is_asked_once_and_only_for_the_present_attempt() -> None:
    case = DeskCase()
    case.join(3)
    case.enter(3)
    case.desk.handle({"type": "checkpoint", "attempt": 2})
    assert not case.desk.take_save()
    case.desk.handle({"type": "checkpoint", "attempt": 3})
    assert case.desk.take_save()
    assert not case.desk.take_save()


def test_unknown_orders_are_ignored_and_stop_is_passed_on() -> None:
    case = DeskCase()
    case.desk.handle({"type": "dance"})
    case.desk.handle({"type": "stop", "grace_s": 1})
    assert case.stops == 1


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "worker.sock"))
        server.listen()
        server.settimeout(30)
        yield server


def read_lines(line: socket.socket, count: int) -> list[dict]:
    with line.makefile("rb") as lines:
        return [json.loads(lines.readline()) for _ in range(count)]


def wait_for_ever(code: int) -> NoReturn:
    """Ends no process, as it stands in the test's own."""
    while True:
        threading.Event().wait()


def test_the_client_greets_again_and_repeats_what_stands(listener: socket.socket) -> None:
    heard: list[dict] = []
    come = threading.Event()

    def hear(message: dict) -> None:
        heard.append(message)
        come.set()

    client = WorkerClient(listener.getsockname(), lambda: {"type": "hello"}, hear, patience_s=0.1, end=wait_for_ever)
    client.start()
    first, _ = listener.accept()
    for message in ({"type": "phase", "n": 1}, {"type": "progress", "n": 2}, {"type": "left", "n": 3}):
        client.send(message)
    assert [m["type"] for m in read_lines(first, 4)] == ["hello", "phase", "progress", "left"]
    first.close()
    second, _ = listener.accept()
    assert read_lines(second, 3) == [{"type": "hello"}, {"type": "left", "n": 3}, {"type": "progress", "n": 2}]
    second.sendall(b'{"type": "le')
    second.sendall(b'ave"}\n')
    assert come.wait(30)
    assert heard == [{"type": "leave"}]
    second.close()
    last, _ = listener.accept()
    assert read_lines(last, 1) == [{"type": "hello"}]
    client.send({"type": "bye"})
    assert client.flush(30)


def test_without_a_supervisor_it_ends_the_process(tmp_path: Path) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> NoReturn:
        codes.append(code)
        ended.set()
        wait_for_ever(code)

    WorkerClient(str(tmp_path / "nobody"), dict, print, patience_s=0.1, end=end).start()
    assert ended.wait(30)
    assert codes == [NO_SUPERVISOR_EXIT]


def test_the_client_needs_only_the_standard_library() -> None:
    code = "import sys, trainer.protocol.client; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
