"""`holdfast up --address` on a Ray cluster that somebody else started, with plain `ray start`."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_harness import EmbeddedCluster, prepare_text, wait_for

from orchestrator import daemon_control
from orchestrator.cli.client import Client
from orchestrator.node.paths import runtime_dir

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SPEC = """\
name: joined
nodes: 1
ranks_per_node: 2
mesh: {{replicas: 2, shards: 1}}
workload:
  trainer:
    model: {{name: olmo_hybrid_tiny}}
    data: {{paths: ["{tokens}"], sequence_length: 128}}
    steps: 6
    batch_tokens: 512
    device: cpu
"""


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[str]:
    """A head with no GPU, as `ray start --block` makes it; ended by its own pid. Its sockets need a short folder."""
    folder = runtime_dir(tmp_path) / "ray"
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=1"]
    command += ["--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    log = tmp_path / "ray.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, "Ray's head")
        assert process.poll() is None, log.read_text()
        gcs = next(folder.glob("session_2*/logs/gcs_server.out")).read_text()
        yield f"127.0.0.1:{re.search(r'listening on port ([0-9]+)', gcs)[1]}"
    finally:
        # Each by pid: a polite end drains the node first, which takes Ray half a minute.
        for started in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                started.kill()
        process.wait()


def test_joins_a_plain_ray_cluster_and_says_that_it_has_no_gpu(tmp_path: Path, ray_head: str) -> None:
    prepare_text(tmp_path)
    said: list[str] = []
    state_dir = tmp_path / "state"
    try:
        daemon_control.up(state_dir, address=ray_head, say=said.append)
        assert any("no GPU's health is checked" in line for line in said), said
        cluster = EmbeddedCluster(tmp_path)
        cluster.client = Client(runtime_dir(state_dir) / "api.sock")
        tokens = next(cluster.data.glob("*.npy"))
        body = {"spec": SPEC.format(tokens=tokens), "file": str(tmp_path / "joined.yaml")}
        run = cluster.client.post("/v1/runs", body)["run"]
        view = cluster.await_end(run)
        assert (view["step"], view["incidents"]) == (6, [])
    finally:
        daemon_control.down(state_dir)


@pytest.mark.parametrize(
    ("address", "said"), [("127.0.0.1:9", "nothing answers at 127.0.0.1:9"), ("auto", "'auto' is no address")]
)
def test_a_wrong_address_is_said_in_a_sentence(tmp_path: Path, address: str, said: str) -> None:
    with pytest.raises(daemon_control.ControlError, match=said):
        daemon_control.up(tmp_path / "state", address=address, say=lambda _: None)
