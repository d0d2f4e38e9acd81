import msgspec
import pytest
from api_fake_service import NOW, FakeService, S
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.metrics import BUCKETS_S
from orchestrator.recovery import ledger


def _families(api):
    response = api.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def _value(families, sample, **labels):
    family = next(f for f in families.values() if any(s.name == sample for s in f.samples))
    return next(s.value for s in family.samples if s.name == sample and labels.items() <= s.labels.items())


def test_names_and_types_follow_the_conventions(api):
    for name, family in _families(api).items():
        assert name.startswith("holdfast_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
            else:
                assert not sample.name.endswith("_total")
            assert not any(unit in sample.name for unit in ("_ms", "_ns", "minutes"))


def test_openmetrics_is_served_to_those_who_ask(api):
    response = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert {f.name for f in openmetrics_families(response.text)} >= {"holdfast_run_phase_seconds", "holdfast_build"}


def test_the_figures_are_the_ledgers(api):
    families = _families(api)
    assert _value(families, "holdfast_run_phase_seconds_total", run="tiny", cause="training") == 988.0
    seconds = [s for s in families["holdfast_run_phase_seconds"].samples if s.labels["run"] == "tiny"]
    assert sum(s.value for s in seconds) == 1000.0
    assert _value(families, "holdfast_uptime_ratio", run="tiny") == pytest.approx(0.988)
    assert _value(families, "holdfast_daemon_epoch") == 4
    assert _value(families, "holdfast_journal_entries_total") == 5
    assert _value(families, "holdfast_steps_lost_total", run="tiny") == 2
    assert _value(families, "holdfast_run_loss", run="tiny") == 2.5
    assert _value(families, "holdfast_run_step", run="tiny") == 91
    assert _value(families, "holdfast_run_tokens_per_second", run="tiny") == pytest.approx(2048 / 0.05)
    assert _value(families, "holdfast_run_skipped_steps", run="tiny") == 2


def test_states_are_one_hot(api):
    families = _families(api)
    for name, label in (("holdfast_node_state", "node"), ("holdfast_run_state", "run")):
        totals = {}
        for sample in families[name].samples:
            totals[sample.labels[label]] = totals.get(sample.labels[label], 0) + sample.value
        assert set(totals.values()) == {1.0}
    assert _value(families, "holdfast_node_state", node="node-3", state="quarantined") == 1
    assert _value(families, "holdfast_run_state", run="later", state="pending") == 1


def test_only_recovered_incidents_are_in_the_histogram(api):
    families = _families(api)
    labels = {"cause": "worker_exited", "rung": "in_place"}
    buckets = [s for s in families["holdfast_recovery_duration_seconds"].samples if s.name.endswith("_bucket")]
    assert [s.value for s in buckets] == [float(bound >= 0.75) for bound in BUCKETS_S] + [1.0]
    assert _value(families, "holdfast_recovery_duration_seconds_sum", **labels) == 0.75
    assert _value(families, "holdfast_recovery_phase_seconds_total", cause="worker_exited", phase="form") == 0.25
    assert _value(families, "holdfast_incidents_total", cause="worker_exited") == 1
    assert _value(families, "holdfast_incidents_open", run="tiny") == 1
    assert not any("node_lost" in s.labels.values() for s in families["holdfast_incidents"].samples)


def test_a_correction_of_the_ledger_is_no_counter_reset(api, service: FakeService):
    """A fault found late moves seconds from training to detect; a counter that falls would read as a restart."""
    before = _value(_families(api), "holdfast_run_phase_seconds_total", run="tiny", cause="training")
    run = service.the_state.runs["tiny"]
    corrected = ledger.transfer(ledger.settled(run.ledger, NOW), [ledger.Cause.TRAINING], ledger.Cause.DETECT, 5 * S)
    runs = service.the_state.runs.set("tiny", msgspec.structs.replace(run, ledger=corrected))
    service.the_state = msgspec.structs.replace(service.the_state, runs=runs)
    families = _families(api)
    assert _value(families, "holdfast_run_phase_seconds_total", run="tiny", cause="training") == before
    assert _value(families, "holdfast_run_phase_seconds_total", run="tiny", cause="detect") == 7.0
    assert _value(families, "holdfast_uptime_ratio", run="tiny") == pytest.approx(0.983)


def test_an_empty_cluster_has_valid_metrics(api, service):
    service.the_state = type(service.the_state)()
    service.journal = []
    assert _value(_families(api), "holdfast_runs_queued") == 0
