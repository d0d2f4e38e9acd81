"""How long a trainer takes from its process's start to its first step, in units of `import torch`.

    python benchmarks/start.py --json FILE [--rounds 9] [--model olmo_hybrid_1m]

One rank on the CPU, one thread. Each round measures in turn a bare `import torch`, a trainer started cold by its command
line, and one forked by the standby, as a supervisor does; a first step is over when its line is in the run's metrics.
Figures are medians over the rounds, ratios medians of each round's own. Exit code 1 when a ratio is 3 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

GOAL = 3.0
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE_S = 120.0


class Standby:
    """A standby at the other end of a line."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._answers = line.makefile("rb")
        self.import_s = json.loads(self._answers.readline())["import_s"]

    def fork(self, argv: list[str], log: Path) -> None:
        request = {"type": "fork", "id": 1, "argv": argv, "env": ENVIRONMENT, "log_path": str(log), "cwd": str(ROOT)}
        self._line.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        if answer["type"] != "forked":
            raise RuntimeError(answer["error"])


@contextmanager
def standby() -> Iterator[Standby]:
    ours, theirs = socket.socketpair()
    environment = {**ENVIRONMENT, "HOLDFAST_STANDBY_FD": str(theirs.fileno())}
    command = [sys.executable, "-m", "trainer.standby"]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment) as process:
        theirs.close()
        yield Standby(ours)
        ours.shutdown(socket.SHUT_RDWR)  # the end of its line ends it
        process.wait(PATIENCE_S)


def write_config(folder: Path, model: str) -> Path:
    """The configuration of a run of one step in `folder`, and its data."""
    folder.mkdir()
    tokens = folder / "tokens.npy"
    np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint16).tofile(tokens)
    config = {
        "run_dir": str(folder),
        "steps": 1,
        "batch_tokens": 512,
        "device": "cpu",
        "model": {"name": model},
        "data": {"paths": [str(tokens)], "sequence_length": 256},
    }
    path = folder / "trainer.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def first_step_at(folder: Path) -> float:
    """Wall time of the run's first step; waits for the run's end, so that nothing of it is left for the next round."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not (folder / "final" / "rank-0.json").exists():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"no end of the run in {folder}")
        time.sleep(0.002)
    line = (folder / "metrics" / "rank-0.jsonl").read_text().splitlines()[0]
    return json.loads(line)["at"]


def import_torch() -> float:
    """Seconds from the process's start to the end of the import, on the same clock as the others."""
    begin = time.time()
    script = "import torch, time; print(time.time())"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return float(done.stdout) - begin


def cold_start(folder: Path, model: str) -> float:
    config = write_config(folder, model)
    begin = time.time()
    subprocess.run([sys.executable, "-m", "trainer", "train", "--config", str(config)], env=ENVIRONMENT, check=True)
    return first_step_at(folder) - begin


def forked_start(folder: Path, model: str, warm: Standby) -> float:
    config = write_config(folder, model)
    begin = time.time()
    warm.fork(["train", "--config", str(config)], folder / "log")
    return first_step_at(folder) - begin


def measure(rounds: int, model: str) -> dict:
    """Medians in seconds and in units of `import torch`; the first round only warms the disk's cache."""
    seconds: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as name, standby() as warm:
        for index in range(rounds + 1):
            cold, forked = Path(name) / f"cold-{index}", Path(name) / f"forked-{index}"
            seconds.append((import_torch(), cold_start(cold, model), forked_start(forked, model, warm)))
    kept = seconds[1:]
    return {
        "model": model,
        "rounds": rounds,
        "import_torch_s": statistics.median(torch for torch, _, _ in kept),
        "cold_s": statistics.median(cold for _, cold, _ in kept),
        "forked_s": statistics.median(forked for _, _, forked in kept),
        "cold_ratio": statistics.median(cold / torch for torch, cold, _ in kept),
        "forked_ratio": statistics.median(forked / torch for torch, _, forked in kept),
        "standby_import_s": warm.import_s,
        "goal_ratio": GOAL,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time from process start to first step.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="olmo_hybrid_1m")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.model)
    text = json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in found.items()}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    return int(max(found["cold_ratio"], found["forked_ratio"]) >= GOAL)


if __name__ == "__main__":
    sys.exit(main())
