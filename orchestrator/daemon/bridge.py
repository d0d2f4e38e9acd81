"""The daemon's end of the Ray bridge: starts it, reads what it says, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

log = structlog.get_logger("bridge")

FIRST_WORD_TIMEOUT_S = 90.0
RESTART_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class BridgeRefusedError(Exception):
    """The Ray cluster can't be used; the message says why and what to do."""


class Bridge:
    """`config` is a BridgeConfig as builtins. `on_nodes` gets {node: alive} at each change."""

    def __init__(
        self, config: dict[str, Any], env: dict[str, str], log_file: Path, on_nodes: Callable[[dict[str, bool]], None]
    ) -> None:
        self._config = config
        self._env = {**os.environ, **env}
        self._log_file = log_file
        self._on_nodes = on_nodes
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self.nodes: list[dict[str, Any]] = []
        self.restarts = 0

    async def start(self) -> int:
        """Returns the epoch that this daemon took. Raises BridgeRefusedError."""
        await self._spawn(take_epoch=True)
        epoch = await asyncio.wait_for(self._first_epoch(), FIRST_WORD_TIMEOUT_S)
        self._task = asyncio.create_task(self._keep())
        return epoch

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        if self._process and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the bridge ends with its input
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), 3.0)
            if self._process.returncode is None:
                self._process.kill()

    async def _spawn(self, *, take_epoch: bool) -> None:
        with self._log_file.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "orchestrator.ray_backend.bridge",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, env=self._env,
                limit=2**22, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode({**self._config, "take_epoch": take_epoch}) + b"\n")
        await self._process.stdin.drain()

    async def _first_epoch(self) -> int:
        while (message := await self._read()) is not None:
            if message["type"] == "epoch":
                return int(message["epoch"])
            self._take(message)
        raise BridgeRefusedError(f"the Ray bridge ended without a word; see {self._log_file}")

    async def _read(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and "type" in message:
                    return message
        return None

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "refused":
            raise BridgeRefusedError(message["why"])
        if message["type"] == "agent":
            log.info("agent", node=message["node"], ok=message["ok"], detail=message["detail"])
        elif message["type"] == "nodes":
            self.nodes = message["nodes"]
            alive: dict[str, bool] = {}
            for node in self.nodes:  # a name may have had several lives in Ray
                alive[node["node"]] = alive.get(node["node"], False) or node["alive"]
            self._on_nodes(alive)

    async def _keep(self) -> None:
        while True:
            try:
                while (message := await self._read()) is not None:
                    self._take(message)
            except BridgeRefusedError as error:
                log.error("bridge_refused", why=str(error))
            assert self._process is not None
            code = await self._process.wait()
            pause_s = RESTART_S[min(self.restarts, len(RESTART_S) - 1)]
            self.restarts += 1
            log.warning("bridge_ended", code=code, again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            await self._spawn(take_epoch=False)
