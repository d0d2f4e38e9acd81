"""The bridge: the Ray driver, in a disposable process of its own (`python -m orchestrator.ray_backend.bridge`).

A Ray driver dies about a minute after Ray's head is lost; the daemon must not. What the bridge makes in Ray is named and
detached, in one namespace, so the next bridge finds it. It ends when its standard input closes.

    stdin, first line   BridgeConfig as JSON
    stdout              one JSON object a line: {"type": "epoch", "epoch"}, {"type": "nodes", "nodes": [...]},
                        {"type": "agent", "node", "ok", "detail"}, {"type": "refused", "why"} as the last
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.ray_backend import environment

POLL_S = 0.5
PING_EVERY_S = 1.0
PING_TIMEOUT_S = 10.0
AGENT_RETRY_S = 2.0
CONNECT_TIMEOUT_S = 5.0


class BridgeConfig(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    known_epoch: int  # the last one that the daemon's journal holds
    state_dir: str
    key_file: str
    endpoint_file: str
    simulated: str = ""
    allow_injection: bool = False
    take_epoch: bool = True


def say(kind: str, **fields: Any) -> None:
    print(json.dumps({"type": kind, **fields}), flush=True)


def main() -> int:
    config = msgspec.json.decode(sys.stdin.readline().encode(), type=BridgeConfig)
    threading.Thread(target=_end_with_daemon, daemon=True).start()
    if why := refusal(config.address):
        say("refused", why=why)
        return 1
    try:
        connect(config.address)
        if config.take_epoch:
            from orchestrator.ray_backend import epoch

            say("epoch", epoch=epoch.take(config.known_epoch, environment.NAMESPACE))
    except Exception as error:
        say("refused", why=f"can't use the Ray cluster at {config.address}: {_first_line(error)}")
        return 1
    Watch(config).run()
    return 0


def _end_with_daemon() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)


def connect(address: str) -> None:
    import ray

    # The driver needs no logs of others and must not steal a signal's meaning from its parent.
    ray.init(address=address, namespace=environment.NAMESPACE, log_to_driver=False, configure_logging=False)


def refusal(address: str) -> str | None:
    """Why this cluster can't or may not be used: nothing is there, or it listens beyond loopback and lets anyone in."""
    if why := _silence(address):
        return why
    if environment.is_loopback(address):
        return None
    probe = (
        "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_get(b'probe', None)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe, address], env=env, capture_output=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return None  # no answer without a token; whether there is one with it, `connect` will tell
    if done.returncode == 0:
        return (
            f"the Ray cluster at {address} listens beyond this machine and asks for no token. Start it with "
            "RAY_AUTH_MODE=token (see the README, On a real cluster)."
        )
    return None


def _silence(address: str) -> str | None:
    """Ray itself would try for a minute and a half before it said so."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return f"{address!r} is no address of a Ray head: write HOST:PORT, such as 10.0.0.1:6379"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers at {address} ({error}): is Ray's head running there?"
    return None


class Watch:
    """Keeps one agent on every node of the cluster and says which nodes there are."""

    def __init__(self, config: BridgeConfig) -> None:
        self._config = config
        self._agents: dict[str, Any] = {}  # Ray node id -> actor
        self._calls: dict[str, tuple[Any, float]] = {}  # Ray node id -> (call under way, begun at)
        self._retry_at: dict[str, float] = {}
        self._said: list[dict[str, Any]] = []

    def run(self) -> None:
        while True:
            self.poll()
            time.sleep(POLL_S)

    def poll(self) -> None:
        import ray

        nodes = training_nodes(ray.nodes())
        if nodes != self._said:
            say("nodes", nodes=nodes)
            self._said = nodes
        for node in nodes:
            if node["alive"]:
                self._attend(node)
            else:
                self._agents.pop(node["id"], None)
                self._calls.pop(node["id"], None)

    def _attend(self, node: dict[str, Any]) -> None:
        now = time.monotonic()
        node_id = node["id"]
        if call := self._calls.get(node_id):
            self._finish(node, *call)
        elif now >= self._retry_at.get(node_id, 0.0):
            agent = self._agents.get(node_id) or self._make_agent(node)
            self._agents[node_id] = agent
            self._calls[node_id] = (agent.ensure_supervisor.remote(), now)

    def _finish(self, node: dict[str, Any], call: Any, begun: float) -> None:
        import ray

        node_id = node["id"]
        done, _ = ray.wait([call], timeout=0)
        if not done and time.monotonic() - begun < PING_TIMEOUT_S + 30.0:
            return
        del self._calls[node_id]
        self._retry_at[node_id] = time.monotonic() + PING_EVERY_S
        try:
            answer = ray.get(call, timeout=1.0)
            if answer["started"]:
                say("agent", node=node["node"], ok=True, detail=f"started supervisor {answer['pid']}")
        except ray.exceptions.ActorDiedError as error:
            # Its supervisor lives on; a new agent finds it.
            self._agents.pop(node_id, None)
            self._retry_at[node_id] = 0.0
            say("agent", node=node["node"], ok=False, detail=f"the agent died: {_first_line(error)}")
        except Exception as error:
            self._retry_at[node_id] = time.monotonic() + AGENT_RETRY_S
            say("agent", node=node["node"], ok=False, detail=_first_line(error))

    def _make_agent(self, node: dict[str, Any]) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from orchestrator.ray_backend.agent import AgentConfig, NodeAgent

        config = self._config
        described = AgentConfig(
            node=node["node"], node_dir=str(Path(config.state_dir) / "nodes" / node["node"]), gpus=node["gpus"],
            boot_id=node["id"][:16], state_dir=config.state_dir, key_file=config.key_file,
            endpoint_file=config.endpoint_file, simulated=config.simulated, bind_host=node["address"],
            allow_injection=config.allow_injection,
        )  # fmt: skip
        return NodeAgent.options(  # type: ignore[attr-defined]
            name=f"agent-{node['id']}", lifetime="detached", get_if_exists=True, num_gpus=node["gpus"],
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["id"], soft=False),
        ).remote(msgspec.json.encode(described))  # fmt: skip


def training_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with GPUs in Ray's books; on a cluster without any, all of them. Sorted by name.

    Each is {"node", "id", "alive", "gpus", "address"}.

    A node's name is its label `holdfast-node`, else its host name, with a piece of Ray's id where hosts share one.
    """
    labelled = [n for n in nodes if n["Labels"].get(environment.NODE_LABEL) != "head"]
    with_gpus = [n for n in labelled if n["Resources"].get("GPU", 0) > 0 or not n["Alive"]]
    chosen = with_gpus if any(n["Alive"] for n in with_gpus) else labelled
    hosts = [n["NodeManagerHostname"] for n in chosen if n["Alive"]]
    out = []
    for n in chosen:
        host = n["NodeManagerHostname"]
        shared = hosts.count(host) > 1
        name = n["Labels"].get(environment.NODE_LABEL) or (f"{host}-{n['NodeID'][:6]}" if shared else host)
        gpus = int(n["Resources"].get("GPU", 0))
        address = n["NodeManagerAddress"]
        out.append({"node": name, "id": n["NodeID"], "alive": n["Alive"], "gpus": gpus, "address": address})
    return sorted(out, key=lambda n: (n["node"], n["id"]))


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # of an error that an actor raised: its own words, without Ray's frame
    text = str(cause or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


if __name__ == "__main__":
    sys.exit(main())
