"""Figures as people see them: read from the ledger and the incidents alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario import play

from orchestrator.recovery import views
from orchestrator.recovery.state import State

SCENARIOS = Path(__file__).parent / "scenarios"


def state_of(name: str) -> State:
    return play((SCENARIOS / f"{name}.txt").read_text())[2]


def test_an_incident_tells_its_recovery_by_phase() -> None:
    view = views.incident_view(state_of("node_lost").runs["demo"].incidents[0])
    assert view["recovery_s"] == pytest.approx(2.53)
    assert sum(view["phases_s"].values()) == pytest.approx(view["recovery_s"])
    assert view["phases_s"]["detect"] == pytest.approx(2.0)
    assert (view["cause"], view["node"], view["rung"], view["steps_lost"]) == ("node_lost", "n0", "in_place", 0)


def test_lost_steps_are_counted_and_regaining_them_is_dated() -> None:
    view = views.incident_view(state_of("no_spare").runs["demo"].incidents[0])
    assert (view["step_before"], view["restored_step"], view["steps_lost"]) == (51, 50, 1)
    assert view["regain_s"] == pytest.approx(view["recovery_s"] + 3.0)


def test_what_lasts_has_no_recovery_time_but_phases_up_to_now() -> None:
    state = state_of("daemon_restart")
    view = views.run_view(state.runs["demo"], state.at_ns + 2_000_000_000)["incident"]
    assert view["recovery_s"] is None
    assert view["phases_s"]["isolate"] == pytest.approx(2.0)


def test_uptime_is_new_training_over_the_time_since_submission() -> None:
    state = state_of("no_spare")
    view = views.run_view(state.runs["demo"], state.at_ns)["ledger"]
    assert view["uptime_ratio"] == pytest.approx(view["accounts_s"]["training"] / view["wall_s"])
    assert sum(view["accounts_s"].values()) == pytest.approx(view["wall_s"])
    later = views.run_view(state.runs["demo"], state.at_ns + 10**10)["ledger"]
    assert later["accounts_s"]["training"] == pytest.approx(view["accounts_s"]["training"] + 10.0)


def test_a_node_tells_its_time_by_standing() -> None:
    state = state_of("readmission")
    view = views.node_view(state.nodes["n1"], state.at_ns)
    assert set(view["seconds"]) == {"healthy", "quarantined", "absent", "probation", "retired"}
    assert sum(view["seconds"].values()) == pytest.approx(state.at_ns / 1e9 - 0.15)  # its first connection


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.txt")))
def test_every_state_can_be_shown_as_json(name: str) -> None:
    state = state_of(name)
    shown = json.loads(json.dumps(views.state_view(state, state.at_ns)))
    assert [run["run"] for run in shown["runs"]] == sorted(state.runs)


def test_only_recovered_incidents_count_in_the_figures() -> None:
    assert views.recovery_stats(state_of("deadlines_climb").runs["demo"].incidents)["count"] == 0
    repeated = state_of("repeat_offender")
    stats = views.recovery_stats(views.all_incidents(repeated))
    assert stats["count"] == 3
    assert stats["p50_s"] == pytest.approx(0.53)
    assert stats["mean_s"] == pytest.approx((0.53 + 0.53 + 20.58) / 3)


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 99))
def test_percentiles_lie_between_the_extremes(values: list[int], percent: int) -> None:
    value = views.percentile([float(v) for v in values], percent)
    assert min(values) - 1e-6 <= value <= max(values) + 1e-6
