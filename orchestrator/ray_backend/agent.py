"""The agent: one detached actor a node, which starts the node's supervisor or finds it again.

It holds the node's GPUs in Ray's books, so that nothing else is placed on them. It belongs to the node, not to a run.
Its death disturbs nobody: the supervisor lives in a session of its own, and the next agent finds it by its socket.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import ray

from orchestrator.node.control import ping
from orchestrator.node.paths import runtime_dir

START_TIMEOUT_S = 30.0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor is started with. Paths must mean the same on every node.

    `bind_host` is where the node's rendezvous stores listen: the address by which Ray's other nodes reach it.
    """

    node: str
    state_dir: str
    node_dir: str
    key_file: str
    endpoint_file: str
    gpus: int
    boot_id: str
    simulated: str = ""  # profile of the simulated node; empty: a real one
    bind_host: str
    allow_injection: bool = False


def supervisor_command(config: AgentConfig, raylet_pid: int) -> list[str]:
    command = [sys.executable, "-m", "orchestrator.node", "--node", config.node, "--dir", config.node_dir]
    command += [
        "--socket",
        str(runtime_dir(Path(config.state_dir))),
        "--key",
        config.key_file,
        "--endpoint",
        config.endpoint_file,
    ]
    command += ["--gpus", str(config.gpus), "--boot-id", config.boot_id, "--raylet-pid", str(raylet_pid)]
    command += ["--bind-host", config.bind_host]
    if config.simulated:
        command += ["--simulated", config.simulated]
    if config.allow_injection:
        command += ["--allow-injection"]
    return command


def raylet_pid() -> int:
    """The raylet is the parent of every worker process of its node. Raises RuntimeError when it is not."""
    parent = os.getppid()
    name = Path(f"/proc/{parent}/comm").read_text().strip()
    if name != "raylet":
        raise RuntimeError(f"the agent's parent process {parent} is {name!r}, not a raylet: its death can't be watched")
    return parent


@ray.remote(num_cpus=0, max_restarts=0)
class NodeAgent:
    def __init__(self, config_json: bytes) -> None:
        self._config = msgspec.json.decode(config_json, type=AgentConfig)

    def ensure_supervisor(self) -> dict[str, Any]:
        """Returns {"pid", "boot_id", "started"}. Raises RuntimeError with the end of the supervisor's log if it does not come."""
        config = self._config
        found = self._found()
        if found:
            return {**found, "started": False}
        log = Path(config.node_dir) / "supervisor.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            # `setsid --fork`: a grandchild in a session of its own, which Ray does not end together with this worker.
            subprocess.run(
                ["setsid", "--fork", *supervisor_command(config, raylet_pid())],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True, env=_clean_environment(),
            )  # fmt: skip
        return {**self._await_supervisor(log), "started": True}

    def _found(self) -> dict[str, Any] | None:
        """What the supervisor of this life of the node says of itself; None when there is none."""
        answer = ping(runtime_dir(Path(self._config.state_dir)), self._config.node)
        return answer if answer and answer.get("boot_id") == self._config.boot_id else None

    def _await_supervisor(self, log: Path) -> dict[str, Any]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if found := self._found():
                return found
            time.sleep(0.05)
        tail = log.read_bytes()[-2000:].decode(errors="replace")
        raise RuntimeError(
            f"the supervisor of {self._config.node} did not answer within {START_TIMEOUT_S:.0f} s:\n{tail}"
        )


def _clean_environment() -> dict[str, str]:
    """Without Ray's variables: a trainer is no Ray worker, and Ray's token is none of its business."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LD_PRELOAD"))}
