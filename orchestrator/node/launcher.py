"""Starts the processes of a run: trainers and stores by the standby's fork, other commands by exec."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.node import paths
from orchestrator.node.environment import trainer_environment
from orchestrator.node.processes import leashed, spawn
from orchestrator.node.standby import ForkError, Standby
from orchestrator.node.workload import Workload
from orchestrator.recovery.commands import JoinGang, StartStore


class LaunchError(Exception):
    """A process was not started; the message says why."""


class Launcher:
    """`worker_socket` is where what it starts finds the supervisor; stores listen on `host`."""

    def __init__(self, standby: Standby, *, node_dir: Path, worker_socket: Path, host: str) -> None:
        self._standby = standby
        self._node_dir = node_dir
        self._socket = worker_socket
        self._host = host

    def rank_log(self, run: str, attempt: int, rank: int) -> Path:
        return paths.rank_log(self._node_dir, run, attempt, rank)

    def join_message(self, command: JoinGang, rank: int) -> dict[str, object]:
        """What a trainer is told; the folder of its log is there already."""
        log_path = self.rank_log(command.run, command.attempt, rank)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        return {
            "type": "join",
            "attempt": command.attempt,
            "rank": rank,
            "world_size": command.world_size,
            "replicas": command.replicas,
            "shards": command.shards,
            "store": {"host": command.store_host, "port": command.store_port},
            "restore": command.restore,
            "log_path": str(log_path),
        }

    async def start_trainer(self, command: JoinGang, workload: Workload, rank: int) -> int:
        """Pid of the new trainer. LaunchError when there is none."""
        log_path = self.rank_log(command.run, command.attempt, rank)
        socket = self._socket if workload.speaks else None
        env = trainer_environment(os.environ, workload.env, command, rank, socket=socket)
        if workload.argv:
            return await self._fork(workload.argv, env, log_path, workload.run_dir)
        cwd = Path(workload.run_dir) if workload.run_dir else None
        try:
            # A command would not notice that its supervisor died; one that speaks the protocol ends itself.
            program = workload.command if workload.speaks else leashed(workload.command)
            return spawn(program, env=env, log_path=log_path, cwd=cwd)
        except OSError as error:
            raise LaunchError(f"cannot start {workload.command[0]} in {cwd or os.getcwd()}: {error.strerror}") from None

    async def start_store(self, command: StartStore, workload: Workload) -> int:
        """Pid of the new store process. LaunchError when there is none."""
        argv = ("store", "--run", command.run, "--attempt", str(command.attempt), "--host", self._host)
        env = {**os.environ, **workload.env, "HOLDFAST_WORKER_SOCKET": str(self._socket), "HOLDFAST_RUN": command.run}
        log_path = paths.store_log(self._node_dir, command.run, command.attempt)
        return await self._fork(argv, env, log_path, workload.run_dir)

    async def _fork(self, argv: tuple[str, ...], env: dict[str, str], log_path: Path, run_dir: str) -> int:
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            return await self._standby.fork(argv, env=env, log_path=log_path, cwd=run_dir or os.getcwd())
        except ForkError as error:
            raise LaunchError(str(error)) from None
        except OSError as error:
            raise LaunchError(f"cannot make {log_path.parent}: {error.strerror}") from None
