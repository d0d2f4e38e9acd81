"""`holdfast up` and `holdfast down`: start and end a cluster's processes from outside.

The daemon and the embedded Ray cluster are two processes in sessions of their own. `up` on a state folder whose Ray cluster
still lives starts only the daemon, which finds its nodes and runs again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.daemon.settings import Settings
from orchestrator.journal.lock import LOCK_NAME
from orchestrator.node.paths import runtime_dir

SIMULATED_PROFILE = "hgx_b200"
CLUSTER_MODULE = "orchestrator.ray_backend.local_cluster"
DAEMON_MODULE = "orchestrator.daemon"
CLUSTER_START_S = 120.0
DAEMON_START_S = 120.0
NODES_READY_S = 120.0
DOWN_S = 30.0
FIRST_NODE_S = 30.0
OUT_OF_SERVICE = ("suspect", "quarantined", "retired")  # a person has to bring these back

Say = Callable[[str], None]


class ControlError(Exception):
    """What could not be started or ended; the message says what to do."""


def up(
    state_dir: Path,
    *,
    address: str | None = None,
    nodes: int = 4,
    spares: int = 1,
    gpus: int = 8,
    listen_host: str | None = None,
    allow_injection: bool = False,
    say: Say = print,
) -> None:
    """Start an embedded simulated cluster, or join the Ray cluster at `address`. Raises ControlError."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if daemon_answers(state_dir):
        raise ControlError(f"a daemon already runs on {state_dir}; `holdfast status` asks it")
    if address:
        host = listen_host or "127.0.0.1"
        settings = Settings(address=address, listen_host=host, allow_injection=allow_injection)
    else:
        address = _embedded_address(state_dir) or _start_cluster(state_dir, nodes + spares, gpus, say)
        settings = Settings(address=address, simulated=SIMULATED_PROFILE, embedded=True)
    settings.write(state_dir)
    pid = start_daemon(state_dir)
    say(f"daemon {pid} serves {state_dir}")
    if settings.embedded:
        _say_ready(await_nodes(state_dir, nodes + spares), gpus, spares, say)
    else:
        _say_joined(state_dir, address, say)


def _say_ready(nodes: list[dict], gpus: int, spares: int, say: Say) -> None:
    out = [node["node"] for node in nodes if node["health"] in OUT_OF_SERVICE]
    spare = f", {spares} of them to spare" if spares and not out else ""
    say(f"{len(nodes) - len(out)} simulated nodes of {gpus} GPUs are ready{spare}")
    if out:
        say(f"out of service: {', '.join(out)}; `holdfast node list` says why")


def _say_joined(state_dir: Path, address: str, say: Say) -> None:
    """Name the nodes that came within a while; the others come in their own time."""
    client = _client(state_dir)
    _wait(lambda: bool(client.get("/v1/nodes")["nodes"]), FIRST_NODE_S)
    nodes = client.get("/v1/nodes")["nodes"]
    names = ", ".join(f"{n['node']} ({n['gpus']} GPUs)" for n in nodes) or "no node has answered yet"
    say(f"joined the Ray cluster at {address}: {names}; `holdfast node list` shows nodes as they come")
    without = [n["node"] for n in nodes if not n["gpus"]]
    if without:
        say(
            f"no GPU in Ray's books on {', '.join(without)}: trainers run on the CPU there, and no GPU's health is checked"
        )


def start_daemon(state_dir: Path) -> int:
    """Start a daemon on a state folder and wait until it answers. Returns its pid. Raises ControlError."""
    log = state_dir / "daemon.log"
    with log.open("ab") as out:
        begin = out.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", DAEMON_MODULE, "--state", str(state_dir)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + DAEMON_START_S
    while time.monotonic() < deadline:
        if daemon_answers(state_dir):
            return process.pid
        if process.poll() is not None:
            raise ControlError(f"the daemon did not start: {_last_line(log, begin)}\nits log: {log}")
        time.sleep(0.05)
    process.kill()
    raise ControlError(f"the daemon did not answer within {DAEMON_START_S:.0f} s; its log: {log}")


def down(state_dir: Path, *, say: Say = print) -> None:
    """End trainers, supervisors, daemon and, if embedded, the Ray cluster. Runs that were not over stay in the journal."""
    answered = daemon_answers(state_dir)
    if answered:
        _client(state_dir).post("/v1/shutdown")
        if not _wait(lambda: not daemon_answers(state_dir), DOWN_S):
            raise ControlError(f"the daemon did not end within {DOWN_S:.0f} s; its log: {state_dir / 'daemon.log'}")
        say("the daemon has ended its nodes and itself")
    elif mute := _daemon_pid(state_dir):
        os.kill(mute, signal.SIGKILL)  # what it had decided is in the journal
        answered = True
        say(f"the daemon (process {mute}) gave no answer and was killed")
    pid = _cluster_pid(state_dir)
    if pid:
        os.kill(pid, signal.SIGTERM)
        if not _wait(lambda: not _runs(pid, CLUSTER_MODULE), DOWN_S):
            os.kill(pid, signal.SIGKILL)
            raise ControlError(f"the embedded Ray cluster (process {pid}) did not end within {DOWN_S:.0f} s: killed")
        say("the embedded Ray cluster has ended")
    elif not answered:
        say(f"nothing runs on {state_dir}")


def daemon_answers(state_dir: Path) -> bool:
    import httpx

    socket_path = runtime_dir(state_dir) / "api.sock"
    if not socket_path.exists():
        return False
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path)), timeout=5.0) as client:
            return client.get("http://localhost/v1/health").is_success
    except httpx.TransportError:
        return False


def await_nodes(state_dir: Path, count: int, timeout_s: float = NODES_READY_S) -> list[dict]:
    """Wait until `count` nodes are present, and healthy or out of service: no time mends those.

    Returns the nodes. Raises ControlError with how many are there.
    """
    client = _client(state_dir)
    found: list[dict] = []

    def enough() -> bool:
        nonlocal found
        settled = ("healthy", *OUT_OF_SERVICE)
        found = [n for n in client.get("/v1/nodes")["nodes"] if n["present"] and n["health"] in settled]
        return len(found) >= count

    if not _wait(enough, timeout_s):
        raise ControlError(
            f"only {len(found)} of {count} nodes came within {timeout_s:.0f} s; the log: {state_dir / 'daemon.log'}"
        )
    return found


def _start_cluster(state_dir: Path, nodes: int, gpus: int, say: Say) -> str:
    say(f"starting a Ray cluster on this machine: a head and {nodes} simulated HGX B200 nodes")
    log = state_dir / "cluster.log"
    with log.open("ab") as out:
        begin = out.tell()
        process = subprocess.Popen(
            [
                sys.executable, "-m", CLUSTER_MODULE, "--state", str(state_dir),
                "--ray-dir", str(runtime_dir(state_dir) / "ray"), "--nodes", str(nodes), "--gpus", str(gpus),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    if not _wait(lambda: _embedded_address(state_dir) is not None or process.poll() is not None, CLUSTER_START_S):
        process.terminate()
        raise ControlError(f"the Ray cluster was not up within {CLUSTER_START_S:.0f} s; its log: {log}")
    address = _embedded_address(state_dir)
    if address is None:
        raise ControlError(f"the Ray cluster did not start: {_last_line(log, begin)}\nits log: {log}")
    return address


def _embedded_address(state_dir: Path) -> str | None:
    return None if _cluster_pid(state_dir) is None else _cluster_file(state_dir)["address"]


def _cluster_pid(state_dir: Path) -> int | None:
    """The embedded cluster's process, if it is alive and still the one that wrote the file (pids are used again)."""
    try:
        pid = int(_cluster_file(state_dir)["pid"])
    except KeyError:
        return None
    return pid if _runs(pid, CLUSTER_MODULE) else None


def _daemon_pid(state_dir: Path) -> int | None:
    """The process that holds the journal, whether it answers or not."""
    try:
        pid = int((state_dir / LOCK_NAME).read_text())
    except (OSError, ValueError):
        return None
    return pid if _runs(pid, DAEMON_MODULE, str(state_dir)) else None


def _runs(pid: int, *words: str) -> bool:
    """Whether that process is alive and these are words of its command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return all(word in command for word in words)


def _cluster_file(state_dir: Path) -> dict:
    try:
        return json.loads((state_dir / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}


def _client(state_dir: Path) -> Any:
    from orchestrator.cli.client import Client

    return Client(runtime_dir(state_dir) / "api.sock")


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as f:
        f.seek(begin)
        lines = f.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
