import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

from api_fake_service import FakeService

from orchestrator.api.app import create_app
from orchestrator.cli.main import main
from orchestrator.node.paths import runtime_dir


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def state_dir(tmp_path: Path):
    folder = tmp_path / "state"
    yield folder
    runtime_dir(folder).rmdir()


@pytest.fixture
def holdfast(state_dir, capfd, monkeypatch):
    """Runs a command line in this process and says how it ended."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["--state", str(state_dir), *args])
        out, err = capfd.readouterr()
        return Result(int(exit_.value.code or 0), out, err)

    return run


@pytest.fixture
def daemon(state_dir):
    """A FakeService behind a real server on the Unix socket where the CLI looks for the daemon."""
    service = FakeService()
    path = runtime_dir(state_dir) / "api.sock"
    server = uvicorn.Server(
        uvicorn.Config(create_app(service), uds=str(path), log_level="critical", log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield service
    server.should_exit = True
    thread.join()
    path.unlink(missing_ok=True)


@pytest.fixture
def program():
    """Runs `python -c code` and gives its stdout."""

    def run(code: str) -> str:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout

    return run
