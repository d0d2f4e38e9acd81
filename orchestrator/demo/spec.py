"""The demo's run: a small Olmo Hybrid on the Python standard library's own sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NODES = 4
SPARES = 1
GPUS = 8
WORLD = {"replicas": 2, "shards": 2}
STEPS = 120
TEXT_BYTES = 8_000_000


class DataError(Exception):
    """The text could not be tokenised; the message is the trainer's own."""


def prepare_data(folder: Path) -> dict[str, Any]:
    """Tokenise the standard library's sources, or use what an earlier demo left. Returns the manifest of the token files."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        command = [sys.executable, "-m", "trainer", "data", "prepare", "--stdlib", "--out", str(folder)]
        command += ["--max-bytes", str(TEXT_BYTES), "--overwrite"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError((done.stderr or done.stdout).strip())
    return json.loads(manifest.read_text())


def run_spec(name: str, data: Path, steps: int = STEPS) -> str:
    """YAML of the run. The data's order depends on the seed alone, so two runs of it are the same run."""
    paths = json.dumps([str(p) for p in sorted(data.glob("*.npy"))])
    return f"""\
name: {name}
nodes: {NODES}
mesh: {{replicas: {WORLD["replicas"]}, shards: {WORLD["shards"]}}}
workload:
  trainer:
    model: {{name: olmo_hybrid_1m}}
    data: {{paths: {paths}, sequence_length: 256}}
    optimizer: {{lr: 4.0e-3, warmup_steps: 10}}
    checkpoint: {{interval_steps: 20}}
    steps: {steps}
    batch_tokens: 2048
    device: cpu
"""
