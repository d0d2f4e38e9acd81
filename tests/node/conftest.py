from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from node_harness import Node


@pytest.fixture
def on_node(tmp_path: Path):
    """Runs an async test body with a Node and ends its processes, also when it fails."""

    def run(body: Callable) -> None:
        async def scenario() -> None:
            node = Node(tmp_path)
            try:
                await body(node)
            except BaseException:
                log = tmp_path / "supervisor.log"
                print(log.read_text() if log.exists() else "no supervisor was started")
                raise
            finally:
                await node.close()

        asyncio.run(scenario())

    return run
