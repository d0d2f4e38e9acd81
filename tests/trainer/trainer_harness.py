"""Plays the node supervisor and the controller for trainers on this machine, in a few hundred lines of plain Python."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
WAIT_S = 60.0  # a guard against hanging for ever; nothing is measured by it

ROOT = Path(__file__).resolve().parents[2]
STEPS = 7  # of the runs that are compared with the reference


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run of world 4 gives."""

    losses: list[dict[int, tuple[str, str]]]
    digests: list[dict]
    folder: Path


class Standby:
    """The standby process and its line."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._line, theirs = socket.socketpair()
        script = Path(__file__).with_name("striking_standby.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOLDFAST_STANDBY_FD": str(theirs.fileno())},
        )
        theirs.close()
        self._answers = self._line.makefile("rb")
        self.ready = json.loads(self._answers.readline())
        self._ids = 0

    def fork(self, argv: list[str], env: dict[str, str], log_path: Path) -> int:
        self._ids += 1
        request = {"type": "fork", "id": self._ids, "argv": argv, "env": env, "log_path": str(log_path), "cwd": "/"}
        self._line.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        assert answer["type"] == "forked", answer
        return answer["pid"]

    def run(self, argv: list[str], env: dict[str, str], log_path: Path) -> int:
        """Exit code of a forked command line."""
        _, status = os.waitpid(self.fork(argv, env, log_path), 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> int:
        self._answers.close()
        self._line.close()
        return self._process.wait(WAIT_S)


class Worker:
    """One connection of a trainer or a store, and all it said."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.pid = 0
        self.rank: int | None = None

    def send(self, message: dict) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall(json.dumps(message).encode() + b"\n")


class Supervisor:
    """Forks trainers and stores, hears them, orders them. Every message is kept as (pid, message)."""

    def __init__(self, standby: Standby, folder: Path, config: Path, replicas: int = 2, shards: int = 2) -> None:
        self.folder, self.config = folder, config
        self.replicas, self.shards = replicas, shards
        self.attempt = 0
        self.said: list[tuple[int, dict]] = []
        self.pids: dict[int, int] = {}  # rank -> pid
        self.exits: dict[int, int] = {}  # pid -> wait status
        self._standby = standby
        self.stores: list[int] = []
        self._changed = threading.Condition()
        self._workers: dict[int, Worker] = {}
        self.environ: dict[str, str] = {}  # of trainers, beside what every one gets
        self._path = folder / "worker.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(32)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def world(self) -> int:
        return self.replicas * self.shards

    # --- orders

    def start(self, strikes: dict[int, list[dict]] | None = None, restore: str = "checkpoint") -> None:
        """Fork a trainer for each rank and let them join."""
        for rank in range(self.world):
            self.fork_rank(rank, (strikes or {}).get(rank, []))
        self.join(restore)

    def fork_rank(self, rank: int, strikes: list[dict] | None = None) -> None:
        env = {**self.environ, "RANK": str(rank), "HOLDFAST_TEST_STRIKES": json.dumps(strikes or [])}
        self.pids[rank] = self._fork(["train", "--config", str(self.config)], env, f"rank-{rank}.log")

    def join(self, restore: str, ranks: list[int] | None = None) -> None:
        """Begin the next attempt with a new store and all ranks, or only these."""
        self.attempt += 1
        argv = ["store", "--run", "r", "--attempt", str(self.attempt), "--host", "127.0.0.1"]
        self.stores.append(self._fork(argv, {}, "store.log"))
        store = self.wait(lambda pid, m: m["type"] == "store" and m["attempt"] == self.attempt)
        for rank in range(self.world) if ranks is None else ranks:
            self.worker(rank).send(self._join_message(rank, restore, store["port"]))

    def _join_message(self, rank: int, restore: str, port: int) -> dict:
        return {
            "type": "join",
            "attempt": self.attempt,
            "rank": rank,
            "world_size": self.world,
            "replicas": self.replicas,
            "shards": self.shards,
            "store": {"host": "127.0.0.1", "port": port},
            "restore": restore,
            "log_path": str(self.folder / f"rank-{rank}.log"),
        }

    def leave(self, ranks: list[int], meanwhile: Callable[[], object] = lambda: None) -> list[dict]:
        """Order these ranks out of the attempt; what they said on leaving. `meanwhile` runs once they are told."""
        heard = len(self.said)
        for rank in ranks:
            self.worker(rank).send({"type": "leave", "attempt": self.attempt, "why": "test"})
        meanwhile()
        return [self.wait_left(rank, heard) for rank in ranks]

    def wait_left(self, rank: int, heard: int) -> dict:
        return self.wait(
            lambda pid, m: pid == self.pids[rank] and m["type"] == "left" and m["attempt"] == self.attempt, after=heard
        )

    def deafen(self) -> None:
        """Hear nobody new, as a dead supervisor does."""
        self._path.unlink()
        self._listener.close()

    def recover(self, killed: list[int], restore: str = "peers") -> list[dict]:
        """What a controller does after it saw these ranks die."""
        left = self.leave([rank for rank in range(self.world) if rank not in killed])
        for rank in killed:
            self.fork_rank(rank)
        self.join(restore)
        return left

    def kill(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGKILL)
        self.wait_exit(rank)

    # --- observations

    def worker(self, rank: int) -> Worker:
        self.wait(lambda pid, m: pid == self.pids[rank] and m["type"] == "hello")
        return self._workers[self.pids[rank]]

    def wait(self, matches: Callable[[int, dict], bool], after: int = 0) -> dict:
        """The first message that matches, from the `after`-th on."""

        def found() -> dict | None:
            return next((m for pid, m in self.said[after:] if matches(pid, m)), None)

        with self._changed:
            if not self._changed.wait_for(lambda: found() is not None, WAIT_S):
                raise TimeoutError(self.story())
            return found()

    def wait_step(self, step: int, rank: int = 0) -> dict:
        return self.wait(lambda pid, m: pid == self.pids[rank] and m["type"] == "progress" and m["step"] >= step)

    def wait_exit(self, rank: int) -> int:
        """Wait status of this rank's process."""
        return self._reap(self.pids[rank])

    def wait_completed(self) -> None:
        """All ranks end with every step done."""
        for rank in range(self.world):
            status = self._reap(self.pids[rank])
            assert status == 0, f"rank {rank} ended with status {status}\n{self.story()}"

    def of_type(self, kind: str) -> list[dict]:
        with self._changed:
            return [m for _, m in self.said if m["type"] == kind]

    def story(self) -> str:
        """All that was said and logged, for a failed test."""
        lines = [f"{pid} {m}" for pid, m in self.said if m["type"] != "progress"]
        logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(lines + logs)

    def close(self) -> None:
        """End what still runs."""
        for pid in [*self.pids.values(), *self.stores]:
            if pid not in self.exits:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._reap(pid)
        self._listener.close()

    # --- inside

    def _fork(self, argv: list[str], env: dict[str, str], log: str) -> int:
        common = {
            "PATH": os.environ.get("PATH", ""),
            "HOLDFAST_RUN": "r",
            "HOLDFAST_NODE": "n",
            "HOLDFAST_WORKER_SOCKET": str(self._path),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return self._standby.fork(argv, {**common, **env}, self.folder / log)

    def _reap(self, pid: int) -> int:
        give_up_at = time.monotonic() + WAIT_S
        while pid not in self.exits:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.exits[pid] = status
            elif time.monotonic() > give_up_at:
                raise TimeoutError(self.story())
            else:
                time.sleep(0.002)
        return self.exits[pid]

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(Worker(line),), daemon=True).start()

    def _hear(self, worker: Worker) -> None:
        with contextlib.suppress(OSError), worker.line.makefile("rb") as lines:
            for text in lines:
                message = json.loads(text)
                message["heard_at"] = time.monotonic()
                worker.pid = message.get("pid", worker.pid)
                with self._changed:
                    self._workers[worker.pid] = worker
                    self.said.append((worker.pid, message))
                    self._changed.notify_all()


def losses(run_dir: Path, ranks: int = 4) -> list[dict[int, tuple[str, str]]]:
    """For each rank: step -> (loss, norm) as hexadecimal floats; the last line of a step counts."""
    found = []
    for rank in range(ranks):
        lines = (run_dir / "metrics" / f"rank-{rank}.jsonl").read_text().splitlines()
        found.append({m["step"]: (m["loss"], m["grad_norm"]) for m in map(json.loads, lines)})
    return found


def digests(run_dir: Path, ranks: int = 4) -> list[dict]:
    return [json.loads((run_dir / "final" / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
