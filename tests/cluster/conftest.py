from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import EmbeddedCluster, prepare_text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """One embedded cluster for a file of tests: each leaves it with four healthy nodes and no run. It ends with the file,
    since an idle Ray cluster still costs the tests that follow a part of a core.
    """
    root: Path = tmp_path_factory.mktemp("cluster")
    prepare_text(root)
    cluster = EmbeddedCluster(root)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def reference(cluster: EmbeddedCluster) -> str:
    """The undisturbed run that all others are compared with."""
    name = cluster.submit("reference")
    view = cluster.await_end(name)
    assert view["incidents"] == []
    return name
