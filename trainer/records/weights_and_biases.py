"""Weights & Biases, in a thread of its own: neither its start nor its network may hold a step up."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
from pathlib import Path

from trainer.config import WandbConfig
from trainer.records.sink import Record
from trainer.records.tensorboard import scalars

_MAX_QUEUED = 10_000


class WeightsAndBiases:
    """One W&B run for all attempts and processes of a run folder: its id is kept in RUN_DIR/wandb-run-id.

    Points carry their own `train_step` as the horizontal axis, as W&B's own step can't go back: steps that are made again
    after a recovery come again, with the number of their attempt. The API key is W&B's business: it takes it from the
    environment. What can't be sent is dropped, after one line in the log.
    """

    def __init__(self, config: WandbConfig, run_dir: Path, settings: dict[str, object]) -> None:
        self._config, self._run_dir, self._settings = config, run_dir, settings
        self._queue: queue.Queue[Record | None] = queue.Queue(_MAX_QUEUED)
        self._thread: threading.Thread | None = None

    def begin(self, step: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
            self._thread.start()

    def write(self, record: Record) -> None:
        if self._thread is not None and self._thread.is_alive() and not self._queue.full():
            self._queue.put(record)  # never waits: this is the only thread that puts

    def close(self, wait_s: float) -> None:
        if self._thread is None:
            return
        if not self._queue.full():
            self._queue.put(None)
            self._thread.join(wait_s)
        self._thread = None

    def _run(self) -> None:
        try:
            import wandb
        except ImportError:
            print("log.wandb needs the wandb package (pip install wandb); training goes on without", file=sys.stderr)
            return
        try:
            run = wandb.init(
                project=self._config.project,
                entity=self._config.entity or None,
                name=self._config.name or self._run_dir.name,
                id=_run_id(self._run_dir),
                resume="allow",
                mode=self._config.mode,
                dir=str(self._run_dir),
                config=self._settings,
                settings={"console": "off"},  # the log of a trainer is the supervisor's
            )
            run.define_metric("*", step_metric="train_step")
            while (record := self._queue.get()) is not None:
                run.log({**scalars(record), "train_step": record["step"], "attempt": record["attempt"]})
            run.finish()
        except BaseException as error:  # wandb raises what it likes, SystemExit included
            print(f"wandb: {type(error).__name__}; training goes on without it", file=sys.stderr, flush=True)


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb-run-id"
    if path.is_file():
        return path.read_text().strip()
    path.write_text(secrets.token_hex(8) + "\n")
    return path.read_text().strip()
