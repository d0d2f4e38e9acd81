import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import daemon_control
from orchestrator.journal.lock import LOCK_NAME

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper(state_dir):
    """Starts a process with these words on its command line, and writes its pid where a daemon writes its own."""
    state_dir.mkdir()
    started = []

    def start(*words: str) -> subprocess.Popen:
        process = subprocess.Popen([*SLEEP, *words])
        started.append(process)
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # empty for a moment after exec
            time.sleep(0.001)
        (state_dir / LOCK_NAME).write_text(f"{process.pid}\n")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_down_kills_a_daemon_that_does_not_answer(state_dir, sleeper):
    process, said = sleeper("orchestrator.daemon", str(state_dir)), []
    daemon_control.down(state_dir, say=said.append)
    assert process.wait(5) == -9
    assert said == [f"the daemon (process {process.pid}) gave no answer and was killed"]


def test_down_spares_a_process_that_only_has_the_old_pid(state_dir, sleeper):
    process, said = sleeper("something.else"), []
    daemon_control.down(state_dir, say=said.append)
    assert process.poll() is None
    assert said == [f"nothing runs on {state_dir}"]
