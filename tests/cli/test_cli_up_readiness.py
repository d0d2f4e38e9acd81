import pytest

from orchestrator import daemon_control


class Nodes:
    def __init__(self, *health: str) -> None:
        self.rows = [{"node": f"n{i}", "present": True, "health": h} for i, h in enumerate(health)]

    def get(self, _path: str) -> dict:
        return {"nodes": self.rows}


@pytest.mark.parametrize("health", ["quarantined", "suspect", "retired"])
def test_up_does_not_wait_for_a_node_that_is_out_of_service(monkeypatch, tmp_path, health):
    monkeypatch.setattr(daemon_control, "_client", lambda _: Nodes("healthy", health))
    nodes = daemon_control.await_nodes(tmp_path, 2, timeout_s=0.0)
    said: list[str] = []
    daemon_control._say_ready(nodes, 8, 1, said.append)
    assert said == [
        "1 simulated nodes of 8 GPUs are ready",
        "out of service: n1; `holdfast node list` says why",
    ]


def test_up_waits_for_a_node_that_is_still_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(daemon_control, "_client", lambda _: Nodes("healthy", "probation"))
    with pytest.raises(daemon_control.ControlError, match="only 1 of 2 nodes came"):
        daemon_control.await_nodes(tmp_path, 2, timeout_s=0.0)
