"""The core's views with what the API knows besides: the shape asked for, the workers' last words, and open incidents.

`at_s` values and `now_s` are seconds of the controller's clock, which starts at the Unix epoch.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from orchestrator.api.service import Service
from orchestrator.recovery import views
from orchestrator.recovery.state import Incident, RunState, State


def now_s(service: Service) -> float:
    return views.seconds(service.now_ns())


def run_row(run: RunState, service: Service) -> dict[str, Any]:
    """`views.run_view` with `plan`, `live` and the name of the open incident."""
    plan = run.plan
    shape = {
        "nodes": plan.nodes,
        "ranks_per_node": plan.ranks_per_node,
        "replicas": plan.replicas,
        "shards": plan.shards,
        "speaks_protocol": plan.speaks_protocol,
        "max_recoveries": plan.max_recoveries,
    }
    live = service.live(run.run)
    return {**views.run_view(run, service.now_ns()), "plan": shape, "live": live}


def run_detail(run: RunState, service: Service) -> dict[str, Any]:
    """`run_row` with every incident in full."""
    incidents = [incident_view(i, service.now_ns()) for i in (*run.incidents, *_open(run))]
    return {**run_row(run, service), "incidents": incidents, "now_s": now_s(service)}


def incident_view(incident: Incident, now_ns: int) -> dict[str, Any]:
    """`views.incident_view` with `elapsed_s`, to which the phases sum: up to now while the incident lasts."""
    end_ns = incident.ended_at_ns or max(now_ns, incident.marks[-1][1] if incident.marks else 0)
    phases = replace(incident, ended_at_ns=end_ns).phases_ns()
    return {
        **views.incident_view(incident),
        "phases_s": {phase: views.seconds(ns) for phase, ns in phases.items()},
        "elapsed_s": views.seconds(end_ns - incident.fault_at_ns),
    }


def goodput_view(run: RunState, now_ns: int) -> dict[str, Any]:
    return {"run": run.run, **views.ledger_view(run.ledger, now_ns)}


def runs_by_age(state: State) -> list[RunState]:
    """A persistent map is in the order of its hashes, which is another in each process: never show it as it comes."""
    return sorted(state.runs.values(), key=lambda run: (run.submitted_ns, run.run))


def all_incidents(state: State) -> list[Incident]:
    """Newest first."""
    return views.all_incidents(state)[::-1]


def _open(run: RunState) -> tuple[Incident, ...]:
    return (run.incident,) if run.incident else ()
