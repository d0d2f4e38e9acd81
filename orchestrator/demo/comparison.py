"""Bit-exactness of two runs: every rank's loss and norm of every step as hexadecimal floats, and the final digests.

Reads the files that docs/worker-protocol.md names: RUN_DIR/metrics/rank-R.jsonl and RUN_DIR/final/rank-R.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`difference` says where the two part first, as a sentence; empty when they are equal bit for bit."""

    steps: int
    difference: str = ""

    @property
    def bit_exact(self) -> bool:
        return not self.difference


def steps_of(run_dir: Path, rank: int) -> dict[int, tuple[str, str]]:
    """step -> (loss, gradient norm) as written by the rank; of a step done again the last time counts."""
    found: dict[int, tuple[str, str]] = {}
    for line in (run_dir / "metrics" / f"rank-{rank}.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["step"]] = (record["loss"], record["grad_norm"])
    return found


def compare(run_dir: Path, other: Path, world_size: int, steps: int) -> Comparison:
    for rank in range(world_size):
        ours, theirs = steps_of(run_dir, rank), steps_of(other, rank)
        for step in range(1, steps + 1):
            if ours.get(step) is None or ours.get(step) != theirs.get(step):
                what = f"rank {rank}, step {step}: {ours.get(step)} and {theirs.get(step)}"
                return Comparison(steps=steps, difference=what)
        final, final_other = (json.loads((d / "final" / f"rank-{rank}.json").read_text()) for d in (run_dir, other))
        if final["digest"] != final_other["digest"] or final["step"] != final_other["step"]:
            return Comparison(steps=steps, difference=f"rank {rank}: the digests of the final state differ")
    return Comparison(steps=steps)


def losses(run_dir: Path) -> list[float]:
    """Of rank 0, by step; every rank reports the same loss of the whole world."""
    found = steps_of(run_dir, 0)
    return [float.fromhex(found[step][0]) for step in sorted(found)]
