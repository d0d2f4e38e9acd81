"""Many seeds, one after the other. A failing one comes with the command that replays it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from orchestrator.controller import Decide
from orchestrator.simulator.run import Outcome, simulate


class Exploration(msgspec.Struct, frozen=True, kw_only=True):
    seeds: int
    decisions: int
    faults: int
    recoveries: int
    restarts: int
    phases: dict[str, int]  # how many runs ended how
    failures: tuple[Outcome, ...]
    wall_s: float

    @property
    def seeds_per_minute(self) -> float:
        return 60 * self.seeds / self.wall_s if self.wall_s else 0.0


def replay_command(seed: int) -> str:
    """Replays this seed and prints why each decision was taken."""
    return f"python -m orchestrator.simulator --seed {seed} --trace"


def explore(
    seeds: Iterable[int],
    *,
    decide: Decide | None = None,
    max_failures: int = 10,
    say: Callable[[str], None] = print,
) -> Exploration:
    """Simulate each seed; stop after `max_failures` failing ones."""
    begin_s = time.monotonic()
    outcomes: list[Outcome] = []
    failures: list[Outcome] = []
    for seed in seeds:
        outcome = simulate(seed, decide=decide)
        outcomes.append(outcome)
        if not outcome.ok:
            failures.append(outcome)
            say(f"seed {seed}: {outcome.violations[0]}\n    replay: {replay_command(seed)}")
            if len(failures) >= max_failures:
                break
    return _sum(outcomes, tuple(failures), time.monotonic() - begin_s)


def _sum(outcomes: list[Outcome], failures: tuple[Outcome, ...], wall_s: float) -> Exploration:
    phases: dict[str, int] = {}
    for outcome in outcomes:
        for phase in outcome.phases.values():
            phases[phase] = phases.get(phase, 0) + 1
    return Exploration(
        seeds=len(outcomes),
        decisions=sum(outcome.decisions for outcome in outcomes),
        faults=sum(outcome.faults for outcome in outcomes),
        recoveries=sum(outcome.recoveries for outcome in outcomes),
        restarts=sum(outcome.restarts for outcome in outcomes),
        phases=phases,
        failures=failures,
        wall_s=wall_s,
    )
