"""Batches as a pure function of (configuration, global batch index, rank, world size)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.config import DataConfig
from trainer.data.epochs import Epochs
from trainer.data.errors import DataError, DataMismatchError
from trainer.data.fingerprint import fingerprint
from trainer.data.order import rank_share
from trainer.data.packed_files import PackedFiles
from trainer.data.repetition import is_repetitive
from trainer.data.token_files import TokenFiles, open_token_files

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the CPU. B sequences of T tokens.

    tokens: int64 (B, T). targets: int64 (B, T), the next token; -100 at the last position, where the target is padding or
    masked by its label mask, and in instances masked for repetition. document_ids: int64 (B, T), from 0 in each sequence,
    one more after each EOS (EOS belongs to the document that it ends). loss_tokens: what the loss is divided by: positions
    with a target, those of instances masked for repetition included (OLMo-core's rule). With label masks or packing ranks
    have unequal numbers of them: then it is the mean over ranks, so that the loss doesn't depend on the world size
    (OLMo-core divides by the rank's own).
    """

    step_index: int
    tokens: torch.Tensor
    targets: torch.Tensor
    document_ids: torch.Tensor
    loss_tokens: float


class TokenDataset:
    """Instances of token files, windows or packed, in the global order.

    vocab_size is the model's; `config.vocab_size`, where given, is the tokenizer's and decides the files' dtype.
    batch_sequences is the global batch: batch_tokens // sequence_length. `cache` is a folder where processes share orders and
    packings; None keeps them in memory. Raises DataError when the files can't serve one batch, SourceNotFoundError for a
    missing one.
    """

    def __init__(self, config: DataConfig, vocab_size: int, batch_sequences: int, cache: Path | None = None) -> None:
        self.config = config
        self.batch_sequences = batch_sequences
        self._cache = cache
        self.files: TokenFiles = open_token_files(config, vocab_size)
        self._source: TokenFiles | PackedFiles = self.files
        if config.packing == "best_fit":
            self._source = PackedFiles(self.files, config.long_documents, cache)
        if self.instances < batch_sequences:
            raise DataError(
                f"the token files hold {self.instances} sequences of {config.sequence_length} tokens, a batch "
                f"needs {batch_sequences}: use more data, shorter sequences or smaller batches"
            )
        self._epochs = Epochs(self.instances, batch_sequences, config.seed, cache)

    @property
    def instances(self) -> int:
        return self._source.instances

    @property
    def batches_per_epoch(self) -> int:
        return self._epochs.batches_per_epoch

    def begin(self) -> None:
        """Start to shuffle the first epoch in the background: at scale that takes as long as a model's start."""
        self._epochs.begin()

    def batch(self, step_index: int, rank: int = 0, world: int = 1) -> Batch:
        """Global batch `step_index` (from 0: the first step trains on batch 0), the share of `rank`.

        Raises DataError for a token outside the vocabulary (naming file and offset) or an
        unreadable file, ValueError when `world` doesn't divide the batch.
        """
        row = self._epochs.row(step_index)
        instances = rank_share(row, rank, world)
        windows = np.stack([self._source.window(int(i)) for i in instances])
        targets = self._targets(windows, instances)
        if self._source.has_masks:
            loss_tokens = max(1, sum(self._targets_of(int(i)) for i in row)) / world
        else:
            loss_tokens = int((targets != IGNORE_INDEX).sum())
        if self.config.mask_repetition:
            targets[[is_repetitive(window) for window in windows]] = IGNORE_INDEX
        return Batch(
            step_index=step_index,
            tokens=torch.from_numpy(windows),
            targets=torch.from_numpy(targets),
            document_ids=torch.from_numpy(document_ids(windows, self.files.eos_id)),
            loss_tokens=loss_tokens,
        )

    def fingerprint(self) -> dict[str, str | int]:
        """What the data position means, as JSON values; `sha256` is over all the others. See `check_fingerprint`."""
        packing = self._source.digest if isinstance(self._source, PackedFiles) else ""
        return fingerprint(self.files, self.config, self.batch_sequences, packing, self._cache)

    def _targets(self, windows: np.ndarray, instances: np.ndarray) -> np.ndarray:
        targets = np.full_like(windows, IGNORE_INDEX)
        targets[:, :-1] = windows[:, 1:]
        if self._source.has_masks:
            allowed = np.stack([self._source.is_target(int(i)) for i in instances])
            targets[:, :-1][~allowed[:, 1:]] = IGNORE_INDEX
        elif self.files.pad_id >= 0:
            targets[targets == self.files.pad_id] = IGNORE_INDEX
        return targets

    def _targets_of(self, instance: int) -> int:
        return int(self._source.is_target(instance)[1:].sum())


def document_ids(windows: np.ndarray, eos_id: int) -> np.ndarray:
    """int64 (B, T): how many documents have ended before each position of its window. eos_id -1: one document each."""
    ended = np.cumsum(windows == eos_id, axis=1, dtype=np.int64)
    ids = np.zeros_like(ended)
    ids[:, 1:] = ended[:, :-1]
    return ids


def check_fingerprint(saved: dict, current: dict) -> None:
    """Raise DataMismatchError naming each field that differs between a checkpoint's fingerprint and the present one."""
    fields = sorted((saved.keys() | current.keys()) - {"sha256"})
    differing = [f"{f} was {saved.get(f)}, is {current.get(f)}" for f in fields if saved.get(f) != current.get(f)]
    if differing:
        raise DataMismatchError(
            "the checkpoint was trained on other data: "
            + "; ".join(differing)
            + ". Restore the data configuration, or "
            "start a new run from its weights"
        )
