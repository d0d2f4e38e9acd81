from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer_harness import ROOT

# Serves forks of a main that tells what it finds itself to be. Importing torch isn't part of this test.
TELLING = """
import json, os, signal, socket, sys
from trainer import standby

def main(argv):
    print(json.dumps({
        "argv": argv, "env": dict(os.environ), "fds": sorted(os.listdir("/proc/self/fd"), key=int), "cwd": os.getcwd(),
        "session": os.getsid(0) == os.getpid(), "parent": os.getppid(), "stdin": sys.stdin.read(),
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_DFL,
        "sigpipe": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
    }))
    return int(argv[0])

standby.warm_up = lambda: 0.0
sys.exit(standby.run(main))
"""


class Line:
    def __init__(self, process: subprocess.Popen, line: socket.socket) -> None:
        self.process = process
        self.line = line
        self.answers = line.makefile("rb")

    def ask(self, request: dict) -> dict:
        self.line.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(self.answers.readline())


@pytest.fixture
def standby_line() -> Iterator[Line]:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", TELLING],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOLDFAST_STANDBY_FD": str(theirs.fileno())},
    )
    theirs.close()
    line = Line(process, ours)
    assert json.loads(line.answers.readline())["type"] == "ready"
    yield line
    line.answers.close()
    ours.close()
    assert process.wait(30) == 0


# The session's standby makes this process the subreaper that adopts the forks.
@pytest.mark.usefixtures("standby")
def test_a_fork_is_a_process_of_its_own(standby_line: Line, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    request = {
        "type": "fork",
        "id": "a",
        "argv": ["7", "x"],
        "env": {"A": "1"},
        "log_path": str(log),
        "cwd": str(tmp_path),
    }
    answer = standby_line.ask(request)
    assert (answer["type"], answer["id"]) == ("forked", "a")
    _, status = os.waitpid(answer["pid"], 0)
    assert os.waitstatus_to_exitcode(status) == 7
    before, told = log.read_text().splitlines()
    found = json.loads(told)
    assert before == "before"
    assert found["argv"] == ["7", "x"]
    assert found["env"] == {"A": "1"}
    assert found["fds"] == ["0", "1", "2", "3"]  # the last is the listing's own
    assert found["cwd"] == str(tmp_path)
    assert found["parent"] == os.getpid()
    assert found["session"]
    assert found["stdin"] == ""
    assert found["sigint"]
    assert found["sigpipe"]


@pytest.mark.usefixtures("standby")
def test_unsound_and_unknown_requests_do_not_end_it(standby_line: Line, tmp_path: Path) -> None:
    standby_line.line.sendall(b'{"type": "dance"}\n')
    answer = standby_line.ask({"type": "fork", "id": 5, "env": {}, "log_path": "/dev/null", "cwd": "/"})
    assert (answer["type"], answer["id"]) == ("fork_failed", 5)
    assert "argv" in answer["error"]
    request = {"type": "fork", "id": 6, "argv": ["0"], "env": {}, "log_path": str(tmp_path / "log"), "cwd": "/"}
    pid = standby_line.ask(request)["pid"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_real_one_starts_no_thread(standby: object) -> None:
    """warm_up raises when it did, and then there is no standby."""
    assert standby.ready["import_s"] > 0
    assert os.listdir(f"/proc/{standby.ready['pid']}/task") == [str(standby.ready["pid"])]


def test_without_its_socket_it_says_so() -> None:
    environ = {k: v for k, v in os.environ.items() if k != "HOLDFAST_STANDBY_FD"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.standby"], capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "HOLDFAST_STANDBY_FD" in done.stderr
