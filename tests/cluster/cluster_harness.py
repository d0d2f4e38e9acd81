"""A real embedded cluster for tests: real Ray, daemon, supervisors and trainers, driven over the real API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from orchestrator import daemon_control
from orchestrator.cli.client import Client
from orchestrator.demo.comparison import compare
from orchestrator.node.paths import runtime_dir

NODES = 4
SPARES = 2
STEPS = 60
WORLD = 4
DEADLINE_S = 120.0


class EmbeddedCluster:
    def __init__(self, root: Path) -> None:
        self.state_dir = root / "state"
        self.data = root / "data"
        self.specs = root / "specs"
        self.specs.mkdir()

    def up(self) -> None:
        daemon_control.up(self.state_dir, nodes=NODES, spares=SPARES)
        self.client = Client(runtime_dir(self.state_dir) / "api.sock")

    def down(self) -> None:
        daemon_control.down(self.state_dir)

    # --- runs

    def submit(self, name: str, *, steps: int = STEPS, priority: int = 0) -> str:
        text = f"""\
name: {name}
nodes: {NODES}
mesh: {{replicas: 2, shards: 2}}
priority: {priority}
workload:
  trainer:
    model: {{name: olmo_hybrid_tiny}}
    data: {{paths: ["{next(self.data.glob("*.npy"))}"], sequence_length: 128}}
    optimizer: {{lr: 3.0e-3, warmup_steps: 5}}
    checkpoint: {{interval_steps: 10}}
    steps: {steps}
    batch_tokens: 1024
    device: cpu
"""
        return self.client.post("/v1/runs", {"spec": text, "file": str(self.specs / f"{name}.yaml")})["run"]

    def run(self, name: str) -> dict[str, Any]:
        return self.client.get(f"/v1/runs/{name}")

    def run_dir(self, name: str) -> Path:
        return self.state_dir / "runs" / name

    def await_step(self, name: str, step: int) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            view = self.run(name)
            assert view["phase"] not in ("completed", "failed", "cancelled"), f"over too early: {view['reason']}"
            return view if view["phase"] == "running" and view["live"].get("step", 0) >= step else None

        return wait_for(there, f"step {step} of {name}")

    def await_end(self, name: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            view = self.run(name)
            return view if view["phase"] in ("completed", "failed", "cancelled") else None

        view = wait_for(ended, f"the end of {name}")
        assert view["phase"] == "completed", view["reason"]
        return view

    def differences(self, name: str, reference: str, steps: int = STEPS) -> str:
        """Empty when every rank's losses, norms and final state equal the reference's bit for bit."""
        return compare(self.run_dir(name), self.run_dir(reference), WORLD, steps).difference

    def lines_written(self, name: str) -> int:
        """Steps that rank 0 has written down, read from the disk: no daemon is needed to see them."""
        return len((self.run_dir(name) / "metrics" / "rank-0.jsonl").read_text().splitlines())

    # --- processes

    def trainer_pids(self, name: str) -> dict[int, int]:
        return {worker["rank"]: worker["pid"] for worker in self.run(name)["live"]["workers"]}

    def daemon(self) -> psutil.Process:
        return psutil.Process(int((self.state_dir / "daemon.lock").read_text()))

    def bridge(self) -> psutil.Process:
        return next(p for p in self.daemon().children() if "orchestrator.ray_backend.bridge" in _command(p))

    def agents(self) -> dict[str, psutil.Process]:
        """Agent actor processes by node, found as children of this cluster's raylets."""
        found = {}
        for raylet in self.raylets().values():
            for child in raylet.children():
                if "NodeAgent" in " ".join(_command(child)):
                    found[self._node_of_raylet(raylet.pid)] = child
        return found

    def raylets(self) -> dict[str, psutil.Process]:
        """The raylet of each node, as its supervisor was told."""
        return {node: psutil.Process(int(_option(p, "--raylet-pid"))) for node, p in self.supervisors().items()}

    def supervisors(self) -> dict[str, psutil.Process]:
        found = {}
        for process in psutil.process_iter():
            line = _command(process)
            if "orchestrator.node" in line and any(str(self.state_dir) in word for word in line):
                found[_option(process, "--node")] = process
        return found

    def _node_of_raylet(self, pid: int) -> str:
        return next(n for n, p in self.supervisors().items() if int(_option(p, "--raylet-pid")) == pid)


def _command(process: psutil.Process) -> list[str]:
    """Empty for a process that has just ended, or waits to be reaped."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _option(process: psutil.Process, name: str) -> str:
    line = process.cmdline()
    return line[line.index(name) + 1]


def kill(process: psutil.Process | int) -> None:
    os.kill(process if isinstance(process, int) else process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {deadline_s:.0f} s")


def prepare_text(root: Path) -> None:
    """A few hundred kilobytes of the project's own sources, tokenised by the project's own command."""
    project = Path(__file__).resolve().parents[2]
    command = ["data", "prepare", str(project / "orchestrator"), "--out", str(root / "data"), "--max-bytes", "400000"]
    subprocess.run([sys.executable, "-m", "trainer", *command], check=True)
