"""The log of a run for people and dashboards: rank 0 writes it, to every place that is configured."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict
from pathlib import Path

import torch

from trainer.config import TrainConfig
from trainer.model.config import ModelSpec
from trainer.model.flops import TrainingFlops, peak_flops, throughput, training_flops
from trainer.records.json_lines import JsonLines
from trainer.records.sink import GuardedSink, Record, finite
from trainer.records.tensorboard import TensorBoard
from trainer.records.weights_and_biases import WeightsAndBiases
from trainer.vote import Verdict

_END_S = 10.0  # that the end of a run waits for what is queued


class RunLog:
    """Of one process, over all its attempts. Nothing that goes wrong in it costs a step.

    MFU is given, counted as `trainer.model.flops` counts, where the GPU's peak is known.
    """

    def __init__(self, config: TrainConfig, spec: ModelSpec) -> None:
        run_dir, log = Path(config.run_dir), config.log
        self._config, self._spec = config, spec
        self._batch_tokens = config.batch_tokens
        self._device_name = ""
        self._flops: TrainingFlops | None = None
        self._lines: JsonLines | None = None
        self._sinks: list[GuardedSink] = []
        if log.jsonl:
            self._sinks.append(GuardedSink("log.jsonl", lambda: self._open_lines(run_dir / "log.jsonl")))
        if log.tensorboard:
            self._sinks.append(GuardedSink("tensorboard", lambda: TensorBoard(run_dir / "tensorboard")))
        if log.wandb.project and log.wandb.mode != "disabled":
            settings = asdict(config)
            self._sinks.append(GuardedSink("wandb", lambda: WeightsAndBiases(log.wandb, run_dir, settings)))
        self._attempt = self._world = 0
        self._writes = False

    def begin(self, attempt: int, rank: int, world: int, step: int) -> None:
        """This process goes on after `step` as this rank; other ranks than 0 write nothing."""
        self._attempt, self._world, self._writes = attempt, world, rank == 0
        if self._writes and self._flops is None:
            self._device_name = _device_name()
            if peak_flops(self._device_name):
                self._flops = training_flops(self._spec, self._config.data.sequence_length)
        for sink in self._sinks:
            sink.begin(step) if self._writes else sink.close(0.0)

    def evaluated(self, step: int) -> bool:
        """Whether the state after `step` has its evaluation in log.jsonl. False on other ranks than 0."""
        return self._writes and self._lines is not None and self._lines.has("evaluation", step)

    def step(
        self, verdict: Verdict, *, lr: float, skipped: int, step_ms: float, data_ms: float, checkpoint_ms: float
    ) -> None:
        """`skipped` counts the steps so far that left the weights alone; the milliseconds are of this step, 0 if unknown."""
        self._write(
            {
                "kind": "step",
                "step": verdict.step,
                "attempt": self._attempt,
                "loss": finite(verdict.loss),
                "grad_norm": finite(verdict.norm),
                "lr": lr,
                "tokens": verdict.step * self._batch_tokens,
                **self._throughput(step_ms / 1e3),
                "outcome": str(verdict.outcome),
                "skipped": skipped,
                "memory_gib": round(_peak_memory_bytes() / 2**30, 3),
                "step_ms": round(step_ms, 3),
                "data_ms": round(data_ms, 3),
                "checkpoint_ms": round(checkpoint_ms, 3),
                "at": time.time(),
            }
        )

    def evaluation(self, step: int, results: dict[str, dict[str, float | None]], took_s: float) -> None:
        """`results`: by set, and `set/label`."""
        self._write(
            {
                "kind": "evaluation",
                "step": step,
                "attempt": self._attempt,
                "results": results,
                "took_s": round(took_s, 3),
                "at": time.time(),
            }
        )

    def end(self) -> None:
        """The run is completed: wait a little for what is on its way."""
        for sink in self._sinks:
            sink.close(_END_S)

    def _write(self, record: Record) -> None:
        if self._writes:
            for sink in self._sinks:
                sink.write(record)

    def _throughput(self, seconds: float) -> Record:
        """`tokens_per_s` is of the whole world, `mfu` by 6N, `mfu_model` with attention and the delta rule."""
        if not seconds:
            return {"tokens_per_s": None, "mfu": None, "mfu_model": None}
        found: Record = {"tokens_per_s": round(self._batch_tokens / seconds, 3), "mfu": None, "mfu_model": None}
        if self._flops is not None:
            each = throughput(self._flops, self._batch_tokens, seconds, self._world, self._device_name)
            found |= {"mfu": round(each.mfu, 4), "mfu_model": round(each.mfu_model, 4)}
        return found

    def _open_lines(self, path: Path) -> JsonLines:
        self._lines = JsonLines(path)
        return self._lines


def _peak_memory_bytes() -> int:
    """Of this process so far: on the GPU where it uses one, else in host memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else ""
