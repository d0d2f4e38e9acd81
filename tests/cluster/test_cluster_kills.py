"""SIGKILL to each kind of process while a real run trains: it finishes, with the losses of the undisturbed run, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cluster_harness import STEPS, EmbeddedCluster, kill, wait_for

from orchestrator import daemon_control
from orchestrator.cli.errors import CliError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def sums_exactly(view: dict) -> bool:
    return abs(sum(view["ledger"]["accounts_s"].values()) - view["ledger"]["wall_s"]) < 1e-3


def test_daemon(cluster: EmbeddedCluster, reference: str) -> None:
    """Trainers train on without a daemon, and the next one finds them again."""
    run = cluster.submit("kill-daemon")
    cluster.await_step(run, 8)
    trainers = cluster.trainer_pids(run)
    epoch = cluster.client.get("/v1/health")["epoch"]
    kill(cluster.daemon())
    written = cluster.lines_written(run)
    wait_for(lambda: cluster.lines_written(run) >= written + 5, "five more steps without a daemon")
    daemon_control.start_daemon(cluster.state_dir)
    wait_for(lambda: len(cluster.run(run)["live"].get("workers", ())) == 4, "all trainers found again")
    assert cluster.trainer_pids(run) == trainers
    assert cluster.client.get("/v1/health")["epoch"] > epoch
    view = cluster.await_end(run)
    assert (view["incidents"], view["attempt"]) == ([], 1)
    assert sums_exactly(view)
    assert cluster.differences(run, reference) == ""


def test_a_second_daemon_on_the_state_folder_is_refused(cluster: EmbeddedCluster) -> None:
    command = [sys.executable, "-m", "orchestrator.daemon", "--state", str(cluster.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"in use by another daemon (pid {cluster.daemon().pid})" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_run_queues_and_says_why(cluster: EmbeddedCluster) -> None:
    first, second = cluster.submit("first"), cluster.submit("second")
    try:
        view = cluster.run(second)
        assert view["phase"] == "pending"
        assert f"run {first} holds 4" in view["reason"]
    finally:
        for run in (second, first):
            cluster.client.post(f"/v1/runs/{run}/cancel")
    wait_for(lambda: not cluster.client.get("/v1/health")["queue"], "an empty queue")
    assert {cluster.run(run)["phase"] for run in (first, second)} == {"cancelled"}


def test_a_fault_that_cannot_be_is_refused_with_the_reason(cluster: EmbeddedCluster) -> None:
    with pytest.raises(CliError, match="did not do 'kill_worker'"):
        cluster.client.post("/v1/faults", {"fault": "kill_worker", "node": "node-1", "details": {"run": "nobody"}})


def test_bridge(cluster: EmbeddedCluster, reference: str) -> None:
    run = cluster.submit("kill-bridge")
    cluster.await_step(run, 8)
    bridge = cluster.bridge().pid
    kill(bridge)
    wait_for(lambda: _other_bridge(cluster, bridge), "a new bridge")
    view = cluster.await_end(run)
    assert (view["incidents"], view["attempt"]) == ([], 1)
    assert cluster.differences(run, reference) == ""


def _other_bridge(cluster: EmbeddedCluster, old: int) -> bool:
    try:
        return cluster.bridge().pid != old
    except StopIteration:
        return False


def test_agent_actor(cluster: EmbeddedCluster, reference: str) -> None:
    run = cluster.submit("kill-agent")
    view = cluster.await_step(run, 8)
    node = view["nodes"][0]
    supervisor, agent = cluster.supervisors()[node].pid, cluster.agents()[node].pid
    kill(agent)
    wait_for(lambda: cluster.agents().get(node) and cluster.agents()[node].pid != agent, "a new agent")
    view = cluster.await_end(run)
    assert cluster.supervisors()[node].pid == supervisor
    assert (view["incidents"], view["attempt"]) == ([], 1)
    assert cluster.differences(run, reference) == ""


@pytest.mark.parametrize("rank", [0, 3])
def test_trainer(cluster: EmbeddedCluster, reference: str, rank: int) -> None:
    run = cluster.submit(f"kill-trainer-{rank}")
    view = cluster.await_step(run, 8)
    nodes, before = view["nodes"], cluster.trainer_pids(run)
    kill(before[rank])
    view = cluster.await_end(run)
    (incident,) = view["incidents"]
    assert (incident["cause"], incident["rank"], incident["node"]) == ("worker_exited", rank, nodes[rank])
    assert (incident["rung"], incident["steps_lost"], incident["outcome"]) == ("in_place", 0, "recovered")
    assert sum(incident["phases_s"].values()) == pytest.approx(incident["recovery_s"])
    assert sums_exactly(view)
    assert cluster.differences(run, reference) == ""


def test_xid_evacuates_the_node_to_a_spare(cluster: EmbeddedCluster, reference: str) -> None:
    run = cluster.submit("xid")
    node = cluster.await_step(run, 8)["nodes"][1]
    cluster.client.post("/v1/faults", {"fault": "xid", "node": node, "details": {"gpu": 3, "xid": 48}})
    view = cluster.await_end(run)
    (incident,) = view["incidents"]
    assert (incident["cause"], incident["node"], incident["steps_lost"]) == ("xid_48", node, 0)
    assert node not in view["nodes"]
    assert cluster.client.get(f"/v1/nodes/{node}")["health"] == "quarantined"
    assert cluster.differences(run, reference) == ""


def test_raylet(cluster: EmbeddedCluster, reference: str) -> None:
    """The node is lost: its supervisor ends its trainers, and a spare takes its place. Last: it costs a node."""
    run = cluster.submit("kill-raylet")
    view = cluster.await_step(run, 8)
    node, trainers = view["nodes"][1], cluster.trainer_pids(run)
    kill(cluster.raylets()[node])
    view = cluster.await_end(run)
    (incident,) = view["incidents"]
    assert (incident["cause"], incident["node"], incident["outcome"]) == ("node_lost", node, "recovered")
    assert (incident["rung"], incident["steps_lost"]) == ("in_place", 0)
    assert trainers[1] not in cluster.trainer_pids(run).values()
    assert not cluster.client.get(f"/v1/nodes/{node}")["present"]
    assert view["step"] == STEPS
    assert cluster.differences(run, reference) == ""
