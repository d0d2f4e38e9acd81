"""The command line of a node supervisor."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    node_dir: Path
    sockets: Path
    key: Path
    endpoint: Path
    gpus: int
    boot_id: str
    raylet_pid: int = 0
    profile: str = ""  # of simulated GPUs; empty: real ones
    bind_host: str = "127.0.0.1"
    allow_injection: bool = False
    standby_command: tuple[str, ...]
    monitor_command: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        return bool(self.profile)


def parse_options(argv: Sequence[str]) -> Options:
    """SystemExit with code 2 on a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.node", description=__doc__)
    parser.add_argument("--node", required=True, help="name of the node")
    parser.add_argument("--dir", required=True, type=Path, help="folder of the node's state and logs")
    parser.add_argument(
        "--socket", required=True, type=Path, help="folder for sockets, of mode 0700 and with a short path"
    )
    parser.add_argument("--key", required=True, type=Path, help="file with the cluster's key")
    parser.add_argument("--endpoint", required=True, type=Path, help="file with the daemon's address")
    parser.add_argument("--gpus", required=True, type=int)
    parser.add_argument("--boot-id", required=True, help="new for each life of the node")
    parser.add_argument("--raylet-pid", type=int, default=0, help="end everything when this process ends")
    parser.add_argument("--simulated", metavar="PROFILE", default="", help="simulated GPUs")
    parser.add_argument("--bind-host", default="127.0.0.1", help="where stores listen; other nodes must reach it")
    parser.add_argument("--allow-injection", action="store_true", help="fault tests on a node with real GPUs")
    parser.add_argument("--standby-command", help="instead of python -m trainer.standby")
    parser.add_argument("--monitor-command", help="instead of python -m healthcheck.monitor")
    given = parser.parse_args(argv)
    node_dir = given.dir.absolute()
    return Options(
        node=given.node,
        node_dir=node_dir,
        sockets=given.socket.absolute(),
        key=given.key.absolute(),
        endpoint=given.endpoint.absolute(),
        gpus=given.gpus,
        boot_id=given.boot_id,
        raylet_pid=given.raylet_pid,
        profile=given.simulated,
        bind_host=given.bind_host,
        allow_injection=given.allow_injection,
        standby_command=_command(given.standby_command) or (sys.executable, "-m", "trainer.standby"),
        monitor_command=_command(given.monitor_command) or _monitor_command(node_dir, given.simulated),
    )


def _command(text: str | None) -> tuple[str, ...]:
    return tuple(shlex.split(text or ""))


def _monitor_command(node_dir: Path, profile: str) -> tuple[str, ...]:
    telemetry = ("--telemetry", "simulated", "--profile", profile) if profile else ("--telemetry", "nvml")
    # It must say that NVML hangs before the supervisor finds it silent and ends it.
    limits = ("--interval", "1.0", "--deadline", "3.0")
    state = ("--state", str(node_dir / "monitor-state.json"))
    return (sys.executable, "-m", "healthcheck.monitor", *telemetry, *state, *limits)
