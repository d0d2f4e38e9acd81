"""The embedded cluster: a real Ray cluster on this machine, one raylet a simulated HGX B200 node.

Runs as a process of its own (`python -m orchestrator.ray_backend.local_cluster`), in a session of its own, so that neither
the daemon nor the terminal takes it down. It writes STATE/cluster.json once all raylets are up, and ends them on SIGTERM.
Everything binds to 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from orchestrator.files import write_atomic
from orchestrator.ray_backend import environment

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB; Holdfast keeps nothing in the object store


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="local_cluster")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--ray-dir", type=Path, required=True, help="short folder for Ray's sockets and logs")
    parser.add_argument("--nodes", type=int, required=True, help="simulated nodes, spares included")
    parser.add_argument("--gpus", type=int, default=8)
    args = parser.parse_args(argv)
    environment.create_token(args.state)
    os.environ.update(environment.embedded(args.state))
    stop = threading.Event()
    cluster = start(args.ray_dir, args.nodes, args.gpus)
    # After the start: each of Ray's nodes puts a handler of its own there, which drains and takes half a minute.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        write_atomic(args.state / "cluster.json", json.dumps(describe(cluster), indent=1))
        stop.wait()
    finally:
        end(cluster)
        (args.state / "cluster.json").unlink(missing_ok=True)
    return 0


def start(ray_dir: Path, nodes: int, gpus: int) -> Any:
    """Head first, then the simulated nodes, one after the other: Ray's Cluster is not safe to use from several threads."""
    from ray.cluster_utils import Cluster  # after the environment is set: Ray reads it at import

    common: dict[str, Any] = {
        "node_ip_address": "127.0.0.1",
        "num_cpus": 1,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "wait": False,
    }
    cluster = Cluster()
    cluster.add_node(num_gpus=0, labels={environment.NODE_LABEL: "head"}, temp_dir=str(ray_dir), **common)
    for i in range(nodes):
        cluster.add_node(num_gpus=gpus, labels={environment.NODE_LABEL: f"node-{i + 1}"}, **common)
    return cluster


def end(cluster: Any) -> None:
    """At once: by now the daemon has ended what ran on the nodes, or nobody cares for it."""
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def describe(cluster: Any) -> dict[str, Any]:
    return {"address": cluster.address, "pid": os.getpid(), "simulated": True}


if __name__ == "__main__":
    sys.exit(main())
