import math

import msgspec
import pytest
from api_fake_service import NOW, S

SPEC = "name: x\nnodes: 4\nworkload: {command: [a.out]}\n"


def test_health_counts_runs_and_nodes(api):
    body = api.get("/v1/health").json()
    assert body["status"] == "ok"
    assert body["epoch"] == 4
    assert body["runs"] == {"recovering": 1, "pending": 1}
    assert body["nodes"] == {"healthy": 2, "quarantined": 1}
    assert body["queue"] == ["later"]


def test_runs_come_in_the_order_of_their_submission(api):
    body = api.get("/v1/runs").json()
    assert [run["run"] for run in body["runs"]] == ["tiny", "later"]
    assert body["now_s"] == NOW / S
    tiny = body["runs"][0]
    assert tiny["phase"] == "recovering"
    assert tiny["live"]["step"] == 91
    assert tiny["incident"]["id"] == "inc-2"
    assert tiny["plan"]["replicas"] == 2


def test_a_run_has_its_ledger_incidents_spec_and_decisions(api):
    body = api.get("/v1/runs/tiny").json()
    assert sum(body["ledger"]["accounts_s"].values()) == body["ledger"]["wall_s"] == 1000
    assert body["ledger"]["uptime_ratio"] == pytest.approx(0.988)
    assert [i["id"] for i in body["incidents"]] == ["inc-1", "inc-2"]
    assert body["spec"]["env"] == {"HF_TOKEN": "(hidden)"}
    assert [d["seq"] for d in body["decisions"]] == [1, 2, 3, 4]
    assert len(api.get("/v1/runs/tiny?decisions=1").json()["decisions"]) == 1


def test_unknown_names_are_404_with_the_likely_one(api):
    for path, near in (
        ("/v1/runs/tiyn", "tiny"),
        ("/v1/nodes/node-11", "node-1"),
        ("/v1/incidents/inc-9", "incident list"),
    ):
        response = api.get(path)
        assert response.status_code == 404
        assert near in response.json()["hint"]


def test_a_path_that_is_no_route_says_so(api):
    response = api.get("/v2/runs")
    assert response.status_code == 404
    assert response.json() == {"error": "There is nothing at /v2/runs.", "hint": "the API is under /v1"}
    assert api.delete("/v1/runs").status_code == 405


def test_a_submission_is_queued_and_says_why(api, service):
    response = api.post("/v1/runs", json={"spec": SPEC, "file": "/home/ann/x.yaml"})
    assert response.status_code == 201
    assert response.json() == {
        "run": "x-2",
        "reason": "It waits for 4 nodes: 1 is free.",
        "warnings": ["No cluster is so big."],
    }
    assert service.calls == [("submit", "x", "/home/ann/x.yaml")]


def test_an_invalid_spec_is_422_with_every_place(api):
    response = api.post("/v1/runs", json={"spec": SPEC.replace("nodes", "noodes"), "file": "/x.yaml"})
    assert response.status_code == 422
    places = {(e["line"], e["column"], e["hint"]) for e in response.json()["errors"]}
    assert (2, 1, "did you mean 'nodes'?") in places


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"{}", "spec"),
        (b'{"spec": 1, "file": "/x"}', "str"),
        (b'{"spec": "", "file": "/x", "flie": 1}', "flie"),
        (b'{"spec": "", "file": "x"}', "absolute"),
        (b'"' + b"x" * (2 << 20) + b'"', "larger"),
    ],
)
def test_a_wrong_body_is_400_and_says_what_is_wrong(api, body, words):
    response = api.post("/v1/runs", content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]


def test_operators_act_under_their_name(api, service):
    assert (
        api.post("/v1/runs/tiny/cancel", json={"who": "ann", "why": "done"}).json()["reason"]
        == "tiny is cancelled by ann."
    )
    api.post("/v1/nodes/node-1/quarantine", json={"who": "ann", "why": "smoke"})
    api.post("/v1/nodes/node-3/readmit", json={"who": "ann"})
    api.post("/v1/shutdown")
    assert service.calls == [
        ("cancel", "tiny", "ann", "done"),
        ("quarantine", "node-1", "ann", "smoke"),
        ("readmit", "node-3", "ann", ""),
        ("shutdown",),
    ]


def test_what_does_not_fit_the_state_is_409(api, service):
    runs = service.the_state.runs
    ended = runs.set("tiny", msgspec.structs.replace(runs["tiny"], finished_ns=NOW))
    service.the_state = msgspec.structs.replace(service.the_state, runs=ended)
    response = api.post("/v1/runs/tiny/cancel")
    assert response.status_code == 409
    assert response.json()["error"] == "tiny has ended already."


def test_logs_are_read_by_offset(api):
    first = api.get("/v1/runs/tiny/log?rank=3").json()
    assert first == {"run": "tiny", "rank": 3, "text": "step 1\nstep 2\n", "next_offset": 14, "attempt": 3}
    assert api.get("/v1/runs/tiny/log?offset=7").json()["text"] == "step 2\n"


@pytest.mark.parametrize("query", ["rank=4", "attempt=4"])
def test_a_log_that_cannot_exist_is_404(api, query):
    assert api.get(f"/v1/runs/tiny/log?{query}").status_code == 404


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "", "٣", "9" * 30])
def test_a_query_that_is_no_number_is_400(api, value):
    assert api.get("/v1/runs/tiny/log", params={"offset": value}).status_code == 400


def test_incidents_are_newest_first_and_their_phases_sum_to_the_recovery(api):
    body = api.get("/v1/incidents").json()
    assert [i["id"] for i in body["incidents"]] == ["inc-2", "inc-1"]
    for incident in body["incidents"]:
        assert math.isclose(sum(incident["phases_s"].values()), incident["elapsed_s"])
    assert body["incidents"][0]["elapsed_s"] == 2.0
    assert body["incidents"][0]["recovery_s"] is None
    assert body["incidents"][1]["recovery_s"] == 0.75
    assert body["incidents"][1]["steps_lost"] == 2
    assert [i["id"] for i in api.get("/v1/incidents?node=node-1").json()["incidents"]] == ["inc-1"]
    assert api.get("/v1/incidents?run=later").json()["incidents"] == []
    assert api.get("/v1/incidents?run=nobody").status_code == 404


def test_a_fault_on_a_rank_goes_to_the_node_that_holds_it(api, service):
    body = {"fault": "kill_worker", "run": "tiny", "rank": 3}
    assert api.post("/v1/faults", json=body).json()["reason"] == "kill_worker begins on node-2."
    api.post("/v1/faults", json={"fault": "kill_raylet", "run": "tiny", "rank": 0})
    api.post("/v1/faults", json={"fault": "xid", "node": "node-1", "details": {"xid": 48, "gpu": 3}})
    assert service.calls == [
        ("inject", "node-2", "kill_worker", {"run": "tiny", "rank": 3}),
        ("inject", "node-1", "kill_raylet", {}),
        ("inject", "node-1", "xid", {"xid": 48, "gpu": 3}),
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"fault": "earthquake", "node": "node-1"}, 400),
        ({"fault": "xid", "node": "node-1"}, 400),
        ({"fault": "xid", "node": "node-1", "details": {"xid": "48"}}, 400),
        ({"fault": "xid", "node": "node-1", "details": {"xid": True}}, 400),
        ({"fault": "kill_raylet", "node": "node-1", "details": {"xid": 48}}, 400),
        ({"fault": "kill_worker"}, 400),
        ({"fault": "kill_worker", "node": "node-9"}, 404),
        ({"fault": "kill_worker", "run": "tiny", "rank": 4}, 404),
        ({"fault": "kill_worker", "run": "later", "rank": 0}, 409),
        ({"fault": "kill_worker", "run": "tiny", "rank": 0, "node": "node-2"}, 409),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(api, service, body, status):
    assert api.post("/v1/faults", json=body).status_code == status
    assert service.calls == []


def test_fault_tests_are_listed_with_what_can_be_injected(api):
    body = api.get("/v1/faults").json()
    assert {"xid", "kill_worker", "stop_worker", "kill_raylet", "stop_raylet"} <= {k["fault"] for k in body["kinds"]}
    assert [(f["node"], f["fault"], f["who"]) for f in body["injected"]] == [("node-1", "kill_worker", "ann")]


def test_goodput_is_of_one_run_or_of_all(api):
    assert [r["run"] for r in api.get("/v1/goodput").json()["runs"]] == ["tiny", "later"]
    one = api.get("/v1/goodput?run=later").json()["runs"]
    assert one[0]["accounts_s"]["waiting_for_capacity"] == one[0]["wall_s"] == 500
    assert one[0]["uptime_ratio"] == 0
    assert api.get("/v1/goodput?run=nobody").status_code == 404


def test_a_node_shows_its_findings(api):
    body = api.get("/v1/nodes/node-3").json()
    assert body["health"] == "quarantined"
    assert body["findings"][0]["sentence"] == "GPU 3 had a double-bit error."
    assert [n["node"] for n in api.get("/v1/nodes").json()["nodes"]] == ["node-1", "node-2", "node-3"]


def test_a_failure_of_the_daemon_is_an_answer_too(api, service):
    service.live = None
    response = api.get("/v1/runs")
    assert response.status_code == 500
    assert response.json()["error"].startswith("The daemon failed: TypeError")
