"""The files a rank leaves in its run's folder: one line a step, and the digest of its final state."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from trainer.train.state import TrainState
from trainer.vote import Verdict


class MetricsFile:
    """Appends `metrics/rank-R.jsonl`. Each line is one write, so a killed process leaves whole lines.

    A disk that takes no more costs lines, not the run: that is said once.
    """

    def __init__(self, run_dir: Path, rank: int, attempt: int, batch_tokens: int) -> None:
        path = run_dir / "metrics" / f"rank-{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._attempt = attempt
        self._batch_tokens = batch_tokens
        self._failing = False

    def append(self, verdict: Verdict) -> None:
        """Loss and norm as hexadecimal floats: equal text means equal bits."""
        line = {
            "attempt": self._attempt,
            "step": verdict.step,
            "loss": verdict.loss.hex(),
            "grad_norm": verdict.norm.hex(),
            "outcome": verdict.outcome,
            "tokens": verdict.step * self._batch_tokens,
            "at": time.time(),
        }
        try:
            self._write(json.dumps(line).encode() + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                print(f"{self._file.name}: {error}; training goes on without", file=sys.stderr, flush=True)
            self._failing = True

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) < len(line):
            os.ftruncate(self._file.fileno(), end)
            raise OSError("the disk is full")

    def close(self) -> None:
        self._file.close()


def write_final(run_dir: Path, rank: int, state: TrainState) -> None:
    """`final/rank-R.json`, whole or not at all."""
    path = run_dir / "final" / f"rank-{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"step": state.step, "digest": state.digest()}) + "\n")
    os.replace(aside, path)
