"""A simulated node under the real pynvml wrappers, one a test, with a clock that only tests move."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from healthcheck.nvml import binding
from healthcheck.simulated.node import SimulatedNode
from healthcheck.sources import connect_node
from healthcheck.telemetry import Telemetry

SHARED = Path(__file__).parents[3] / "shared" / "data"
S = 10**9


class Clock:
    def __init__(self) -> None:
        self.ns = 1_000 * S

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(clock: Clock) -> SimulatedNode:
    return SimulatedNode("hgx_b200", seed=7, now_ns=clock)


@pytest.fixture
def telemetry(node: SimulatedNode) -> Iterator[Telemetry]:
    yield connect_node(node)
    binding.install(None)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("reference tables in ../shared/data are not here")
    return SHARED


class MonitorProcess:
    """`python -m healthcheck.monitor` on a simulated node; waits end at a deadline, never at a guess of how long."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "healthcheck.monitor", "--telemetry", "simulated", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._kept = b""

    def send(self, **message: Any) -> None:
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, line: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def until(self, wanted: Callable[[dict[str, Any]], bool], deadline_s: float = 30) -> list[dict[str, Any]]:
        """All messages up to the first wanted one, which is the last of the list."""
        assert self.process.stdout
        end, seen = time.monotonic() + deadline_s, []
        while time.monotonic() < end:
            line, newline, rest = self._kept.partition(b"\n")
            if newline:
                self._kept = rest
                seen.append(json.loads(line))
                if wanted(seen[-1]):
                    return seen
                continue
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                chunk = os.read(self.process.stdout.fileno(), 65536)
                assert chunk, f"the monitor ended; it said {seen}"
                self._kept += chunk
        raise AssertionError(f"not said within {deadline_s} s; said: {seen}")

    def until_type(self, kind: str) -> list[dict[str, Any]]:
        return self.until(lambda message: message["type"] == kind)

    def close(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(10)


@pytest.fixture
def monitor() -> Iterator[Callable[..., MonitorProcess]]:
    started: list[MonitorProcess] = []

    def start(*arguments: str) -> MonitorProcess:
        started.append(MonitorProcess(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)
        for stream in (one.process.stdin, one.process.stdout):
            assert stream
            stream.close()
