"""Plain dicts of runs, nodes and incidents for JSON, their figures read from ledger and incidents; seconds are floats.

The core knows one clock, in nanoseconds; `at_s` values are on it. Whoever shows them to people adds its offset from the
wall clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import quantiles
from typing import Any

from msgspec.structs import replace

from orchestrator.recovery import incident as incidents
from orchestrator.recovery import ledger as ledgers
from orchestrator.recovery.draft import standing
from orchestrator.recovery.state import Cause, Incident, Ledger, NodeState, RunState, State

View = dict[str, Any]


def seconds(ns: int) -> float:
    return ns / 1e9


def accounts_s(ledger: Ledger, at_ns: int) -> dict[str, float]:
    """Seconds by cause, the open interval up to `at_ns` included, in the order of `Cause`; causes without any are 0."""
    accounts = ledgers.settled(ledger, at_ns).accounts
    return {cause.value: seconds(accounts.get(cause.value, 0)) for cause in Cause}


def wall_ns(ledger: Ledger, at_ns: int) -> int:
    """From the submission to now, or to the end."""
    return ledgers.settled(ledger, at_ns).since_ns - ledger.opened_ns


def uptime_ratio(ledger: Ledger, at_ns: int) -> float:
    """Time in which steps were trained for the first time / wall time since submission; 0 at the submission."""
    wall = wall_ns(ledger, at_ns)
    return ledgers.settled(ledger, at_ns).accounts.get(Cause.TRAINING.value, 0) / wall if wall else 0.0


def ledger_view(ledger: Ledger, at_ns: int) -> View:
    return {
        "accounts_s": accounts_s(ledger, at_ns),
        "wall_s": seconds(wall_ns(ledger, at_ns)),
        "uptime_ratio": uptime_ratio(ledger, at_ns),
        "cause": None if ledger.closed else str(ledger.cause),
    }


def incident_view(incident: Incident, at_ns: int = 0) -> View:
    """`recovery_s` and `regain_s` count from the fault; None as long as (or if never) it is recovered or regained.

    The phases of one that lasts are counted up to `at_ns`.
    """
    over, regained = incident.ended_at_ns, incident.regained_at_ns
    phases = incident.phases_ns() if over else replace(incident, ended_at_ns=at_ns).phases_ns()
    return {
        "id": incident.id,
        "run": incident.run,
        "cause": incident.cause,
        "node": incident.node,
        "rank": incident.rank,
        "rung": str(incident.rung),
        "reason": incident.reason,
        "also": list(incident.also),
        "outcome": incident.outcome,
        "attempts": incident.rounds - 1,
        "fault_at_s": seconds(incident.fault_at_ns),
        "detected_at_s": seconds(incident.detected_at_ns),
        "ended_at_s": seconds(over) if over else None,
        "recovery_s": seconds(incidents.recovery_ns(incident)) if incident.outcome == "recovered" else None,
        "regain_s": seconds(regained - incident.fault_at_ns) if regained else None,
        "phases_s": {phase: seconds(ns) for phase, ns in phases.items()},
        "step_before": incident.step_before,
        "restored_step": incident.restored_step if incident.restored_step >= 0 else None,
        "steps_lost": incident.steps_lost,
    }


def run_view(run: RunState, at_ns: int) -> View:
    stages = {"stage": str(run.stage) if run.stage else None, "deadline_at_s": seconds(run.deadline_ns) or None}
    return {
        "run": run.run,
        "phase": str(run.phase),
        **stages,
        "reason": run.reason,
        "attempt": run.attempt,
        "priority": run.plan.priority,
        "world_size": run.plan.world_size,
        "nodes": list(run.placement),
        "rung": str(run.rung),
        "step": run.step,
        "checkpoint_step": run.checkpoint_step if run.checkpoint_step >= 0 else None,
        "checkpoint_path": run.checkpoint_path,
        "recoveries": run.recoveries,
        "barren_recoveries": run.barren_recoveries,
        "submitted_at_s": seconds(run.submitted_ns),
        "finished_at_s": seconds(run.finished_ns) if run.ledger.closed else None,
        "incident": incident_view(run.incident, at_ns) if run.incident else None,
        "incidents": [incident.id for incident in run.incidents],
        "recovery": recovery_stats(run.incidents),
        "ledger": ledger_view(run.ledger, at_ns),
    }


def node_view(node: NodeState, at_ns: int) -> View:
    spent = dict(node.seconds_ns)
    name = standing(node)
    spent[name] = spent.get(name, 0) + max(0, at_ns - node.since_ns)
    return {
        "node": node.node,
        "health": str(node.health),
        "role": "active" if node.run else "spare",
        "present": node.present,
        "gpus": node.gpus,
        "run": node.run,
        "reason": node.reason,
        "since_s": seconds(node.since_ns),
        "failures": len(node.failures_ns),
        "findings": [
            {
                "check": finding.check,
                "cause": finding.cause,
                "severity": finding.severity,
                "action": finding.action,
                "sentence": finding.sentence,
                "gpu": finding.gpu,
                "evidence": dict(finding.evidence),
            }
            for finding in node.findings
        ],
        "seconds": {name: seconds(spent[name]) for name in sorted(spent)},
    }


def all_incidents(state: State) -> list[Incident]:
    """Of all runs, ended or not, in the order in which they were opened."""
    found: list[Incident] = []
    for run in state.runs.values():
        found.extend(run.incidents)
        if run.incident is not None:
            found.append(run.incident)
    return sorted(found, key=lambda incident: int(incident.id.removeprefix("inc-")))


def recovery_stats(ended: Iterable[Incident]) -> View:
    """Of `recovery_s` over recovered incidents; the figures are None when there is none.

    Percentiles interpolate linearly between the sorted values, the least at 0 and the greatest at 100 percent.
    """
    values = [seconds(incidents.recovery_ns(incident)) for incident in ended if incident.outcome == "recovered"]
    if not values:
        return {"count": 0, "mean_s": None, "p50_s": None, "p95_s": None}
    return {
        "count": len(values),
        "mean_s": sum(values) / len(values),
        "p50_s": percentile(values, 50),
        "p95_s": percentile(values, 95),
    }


def percentile(values: list[float], percent: int) -> float:
    """`percent` in 1..99, `values` not empty."""
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def state_view(state: State, at_ns: int) -> View:
    return {
        "at_s": seconds(at_ns),
        "epoch": state.epoch,
        "runs": [run_view(state.runs[name], at_ns) for name in sorted(state.runs)],
        "nodes": [node_view(state.nodes[name], at_ns) for name in sorted(state.nodes)],
        "queue": list(state.queue),
    }
