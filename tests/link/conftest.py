from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from link_cluster import Cluster


@pytest.fixture
def in_cluster(tmp_path: Path):
    """Runs an async test body with a Cluster and closes what it opened, also when it fails."""

    def run(body: Callable) -> None:
        async def scenario() -> None:
            cluster = Cluster(tmp_path)
            try:
                await body(cluster)
            finally:
                await cluster.close()

        asyncio.run(scenario())

    return run
