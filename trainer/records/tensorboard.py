"""TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path

from trainer.records.sink import Record

_FLUSH_S = 5  # what a killed process loses here; log.jsonl loses nothing
_STEP_SCALARS = (
    *("loss", "grad_norm", "lr", "tokens", "tokens_per_s", "mfu", "mfu_model", "skipped"),
    *("memory_gib", "step_ms", "data_ms", "checkpoint_ms"),
)


class TensorBoard:
    """Scalars of `train/` and `evaluation/`. Steps that are made again are purged by TensorBoard itself (purge_step).

    Raises ImportError where tensorboard isn't installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("log.tensorboard needs the tensorboard package: pip install tensorboard") from error
        self._new_writer = lambda step: SummaryWriter(str(folder), purge_step=step + 1, flush_secs=_FLUSH_S)
        self._writer: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        self.close(0.0)
        self._writer = self._new_writer(step)

    def write(self, record: Record) -> None:
        step = int(str(record["step"]))
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, step)

    def close(self, wait_s: float) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record, by the names that dashboards show: train/loss, evaluation/wiki/bits_per_byte, ..."""
    if record["kind"] == "step":
        return {f"train/{name}": float(str(record[name])) for name in _STEP_SCALARS if record.get(name) is not None}
    return {
        f"evaluation/{group}/{name}": float(value)
        for group, result in record["results"].items()
        for name, value in result.items()
        if value is not None
    }
