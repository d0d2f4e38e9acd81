"""Prometheus metrics, read from the state and its ledgers at each scrape: no figure is counted a second time.

The only memory is `_Rising`: the ledger moves seconds from training to detect when a fault turns out to have begun
earlier, and a counter that falls would read as a restart. Such a counter stands still until its account has caught up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TypeVar

from immutables import Map
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.recovery.ledger import settled
from orchestrator.recovery.state import Cause, NodeHealth, RunPhase, State

Item = TypeVar("Item")

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
LIVE = (
    ("holdfast_run_loss", "loss", "Loss of the newest step."),
    ("holdfast_run_grad_norm", "grad_norm", "Global gradient norm of the newest step."),
    ("holdfast_run_skipped_steps", "skipped", "Steps that did not change the weights: outliers, or not finite twice."),
    ("holdfast_run_tokens_per_second", "tokens_per_s", "Tokens trained a second by the whole world."),
)


class Source(Protocol):
    """What is measured; a part of `orchestrator.api.service.Service`."""

    def state(self) -> State: ...

    def now_ns(self) -> int: ...

    def last_seq(self) -> int: ...

    def live(self, run: str) -> dict[str, Any]: ...


class HoldfastCollector(Collector):
    """Register it in a CollectorRegistry of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._phase_seconds = _Rising()

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are fixed, and a registry need not read the state to learn them."""
        return []

    def collect(self) -> Iterator[Metric]:
        state, now_ns = self._source.state(), max(self._source.now_ns(), self._source.state().at_ns)
        yield from _daemon(state, self._source.last_seq())
        yield from _nodes(state)
        yield from _runs(state)
        yield from self._time(state, now_ns)
        yield from _live(state, self._source)
        yield from _incidents(state)

    def _time(self, state: State, now_ns: int) -> Iterator[Metric]:
        seconds = CounterMetricFamily(
            "holdfast_run_phase_seconds", "Seconds of a run by cause.", labels=["run", "cause"]
        )
        uptime = GaugeMetricFamily(
            "holdfast_uptime_ratio",
            "Seconds of steps trained for the first time / seconds since submission.",
            labels=["run"],
        )
        for run in _sorted(state.runs):
            ledger = settled(run.ledger, now_ns)
            for cause in Cause:
                value = ledger.accounts.get(cause.value, 0) / 1e9
                seconds.add_metric([run.run, cause.value], self._phase_seconds(run.run, cause.value, value))
            if total := ledger.since_ns - ledger.opened_ns:
                uptime.add_metric([run.run], ledger.accounts.get(Cause.TRAINING.value, 0) / total)
        yield from (seconds, uptime)


class _Rising:
    """The highest value seen of each series."""

    def __init__(self) -> None:
        self._highest: dict[tuple[str, str], float] = {}

    def __call__(self, run: str, cause: str, value: float) -> float:
        highest = self._highest[run, cause] = max(value, self._highest.get((run, cause), 0.0))
        return highest


def _sorted(items: Map[str, Item]) -> list[Item]:
    """By name: the order of a persistent map's hashes is another in each process."""
    return [items[name] for name in sorted(items)]


def version_of_holdfast() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def _daemon(state: State, last_seq: int) -> Iterator[Metric]:
    yield InfoMetricFamily("holdfast_build", "Version of the daemon.", value={"version": version_of_holdfast()})
    yield GaugeMetricFamily("holdfast_daemon_epoch", "Epoch under which the daemon commands.", value=state.epoch)
    yield CounterMetricFamily("holdfast_journal_entries", "Entries of the journal.", value=last_seq)
    yield GaugeMetricFamily("holdfast_runs_queued", "Runs that wait for a place.", value=len(state.queue))


def _nodes(state: State) -> Iterator[Metric]:
    health = GaugeMetricFamily("holdfast_node_state", "1 for the state that the node is in.", labels=["node", "state"])
    present = GaugeMetricFamily("holdfast_node_present", "1 while the node's supervisor is reachable.", labels=["node"])
    gpus = GaugeMetricFamily("holdfast_node_gpus", "GPUs of the node.", labels=["node"])
    in_run = GaugeMetricFamily("holdfast_node_in_run", "1 for the run that the node works for.", labels=["node", "run"])
    for node in _sorted(state.nodes):
        for one in NodeHealth:
            health.add_metric([node.node, one.value], float(node.health is one))
        present.add_metric([node.node], float(node.present))
        gpus.add_metric([node.node], node.gpus)
        if node.run:
            in_run.add_metric([node.node, node.run], 1.0)
    yield from (health, present, gpus, in_run)


def _runs(state: State) -> Iterator[Metric]:
    phase = GaugeMetricFamily("holdfast_run_state", "1 for the state that the run is in.", labels=["run", "state"])
    gauges = {
        "ranks": "World size of the run.",
        "attempt": "Number of the run's newest attempt.",
        "checkpoint_step": "Step of the newest committed checkpoint; -1: none.",
    }
    families = {name: GaugeMetricFamily(f"holdfast_run_{name}", what, labels=["run"]) for name, what in gauges.items()}
    recoveries = CounterMetricFamily("holdfast_run_recoveries", "Recoveries that the run needed.", labels=["run"])
    for run in _sorted(state.runs):
        for one in RunPhase:
            phase.add_metric([run.run, one.value], float(run.phase is one))
        families["ranks"].add_metric([run.run], run.plan.world_size)
        families["attempt"].add_metric([run.run], run.attempt)
        families["checkpoint_step"].add_metric([run.run], run.checkpoint_step)
        recoveries.add_metric([run.run], run.recoveries)
    yield from (phase, *families.values(), recoveries)


def _live(state: State, source: Source) -> Iterator[Metric]:
    step = GaugeMetricFamily("holdfast_run_step", "Newest step that all ranks have completed.", labels=["run"])
    seconds = GaugeMetricFamily("holdfast_run_step_duration_seconds", "Duration of the newest step.", labels=["run"])
    others = [(key, GaugeMetricFamily(name, what, labels=["run"])) for name, key, what in LIVE]
    for run in _sorted(state.runs):
        live = source.live(run.run)
        step.add_metric([run.run], max(run.step, live.get("step", 0)))
        if not live.get("step_ms"):
            continue
        seconds.add_metric([run.run], live["step_ms"] / 1e3)
        for key, family in others:
            family.add_metric([run.run], live[key])
    yield from (step, seconds, *(family for _, family in others))


def _incidents(state: State) -> Iterator[Metric]:
    """By cause once they ended: an open incident may still find a nearer cause. Durations are of recovered ones."""
    closed = CounterMetricFamily("holdfast_incidents", "Ended incidents by cause.", labels=["cause"])
    still_open = GaugeMetricFamily("holdfast_incidents_open", "1 while the run has an open incident.", labels=["run"])
    lost = CounterMetricFamily("holdfast_steps_lost", "Completed steps that a recovery lost.", labels=["run"])
    parts = CounterMetricFamily(
        "holdfast_recovery_phase_seconds", "Seconds of ended recoveries by part.", labels=["cause", "phase"]
    )
    causes: Counter[str] = Counter()
    part_ns: Counter[tuple[str, str]] = Counter()
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in _sorted(state.runs):
        ended = [i for i in run.incidents if i.outcome == "recovered"]
        causes.update(i.cause for i in run.incidents)
        still_open.add_metric([run.run], float(run.incident is not None))
        lost.add_metric([run.run], sum(i.steps_lost for i in ended))
        for incident in ended:
            durations[incident.cause, incident.rung.value].append((incident.ended_at_ns - incident.fault_at_ns) / 1e9)
            part_ns.update({(incident.cause, part): ns for part, ns in incident.phases_ns().items()})
    for cause, number in sorted(causes.items()):
        closed.add_metric([cause], number)
    for labels, ns in sorted(part_ns.items()):
        parts.add_metric(list(labels), ns / 1e9)
    yield from (closed, still_open, lost, parts, _histogram(durations))


def _histogram(durations: dict[tuple[str, str], list[float]]) -> Metric:
    family = HistogramMetricFamily(
        "holdfast_recovery_duration_seconds",
        "From the fault to the next step that all ranks completed.",
        labels=["cause", "rung"],
    )
    for labels, seconds in sorted(durations.items()):
        counts = [0] * (len(BUCKETS_S) + 1)
        for value in seconds:
            counts[bisect_left(BUCKETS_S, value)] += 1
        running, buckets = 0, []
        for bound, number in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
            running += number
            buckets.append((bound, running))
        family.add_metric(list(labels), buckets, sum_value=sum(seconds))
    return family
