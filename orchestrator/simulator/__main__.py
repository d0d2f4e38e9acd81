"""`python -m orchestrator.simulator`: explore many seeds, or replay one. Exit code 1 when an invariant broke."""

from __future__ import annotations

import argparse
import sys

from orchestrator.simulator.explore import explore
from orchestrator.simulator.run import Outcome, simulate
from orchestrator.simulator.trace import line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="explore N seeds (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="first seed of an exploration (default 0)")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every decision and its reason")
    args = parser.parse_args(argv)
    if args.trace and args.seed is None:
        parser.error("--trace needs --seed")
    return _explore(args.start, args.seeds) if args.seed is None else _one(args.seed, args.trace)


def _one(seed: int, trace: bool) -> int:
    outcome = simulate(seed, tracer=(lambda event, decision: print(line(event, decision))) if trace else None)
    print(_summary(outcome))
    for violation in outcome.violations:
        print(f"broken: {violation}")
    return 0 if outcome.ok else 1


def _summary(outcome: Outcome) -> str:
    runs = ", ".join(f"{run} {phase}" for run, phase in outcome.phases.items())
    return (
        f"seed {outcome.seed}: {runs}; {outcome.decisions} decisions, {outcome.faults} faults, {outcome.recoveries} "
        f"recoveries, {outcome.restarts} daemon restarts in {outcome.virtual_s:.0f} s of virtual time; "
        f"digest {outcome.digest[:16]}"
    )


def _explore(start: int, seeds: int) -> int:
    found = explore(range(start, start + seeds))
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(found.phases.items()))
    print(
        f"{found.seeds} seeds, {len(found.failures)} failing: {found.decisions} decisions, {found.faults} faults, "
        f"{found.recoveries} recoveries, {found.restarts} daemon restarts; runs: {phases}; "
        f"{found.seeds_per_minute:.0f} seeds a minute"
    )
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
