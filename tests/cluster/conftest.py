from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import EmbeddedCluster, prepare_text


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """One embedded cluster for all tests: each leaves it with four healthy nodes and no run."""
    root: Path = tmp_path_factory.mktemp("cluster")
    prepare_text(root)
    cluster = EmbeddedCluster(root)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def reference(cluster: EmbeddedCluster) -> str:
    """The undisturbed run that all others are compared with."""
    name = cluster.submit("reference")
    view = cluster.await_end(name)
    assert view["incidents"] == []
    return name
