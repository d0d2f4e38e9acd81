"""Batches as a pure function of (configuration, global batch index, rank, world size)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainer.config import DataConfig
from trainer.data.errors import DataError, DataMismatchError
from trainer.data.fingerprint import fingerprint
from trainer.data.order import epoch_order, locate, rank_share
from trainer.data.repetition import is_repetitive
from trainer.data.token_files import TokenFiles, open_token_files

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the CPU. B sequences of T tokens.

    tokens: int64 (B, T). targets: int64 (B, T), the next token; -100 at the last position, where the target is padding,
    and in instances masked for repetition. document_ids: int64 (B, T), from 0 in each sequence, one more after each EOS
    (EOS belongs to the document that it ends). loss_tokens: what the loss is divided by: positions with a target, those
    of masked instances included (OLMo-core's rule).
    """

    step_index: int
    tokens: torch.Tensor
    targets: torch.Tensor
    document_ids: torch.Tensor
    loss_tokens: int


class TokenDataset:
    """Windows of `sequence_length` tokens of token files, in the global order.

    vocab_size is the model's; `config.vocab_size`, where given, is the tokenizer's and decides the files' dtype.
    batch_sequences is the global batch: batch_tokens // sequence_length. Raises DataError when the files can't serve
    one batch, SourceNotFoundError for a missing one.
    """

    def __init__(self, config: DataConfig, vocab_size: int, batch_sequences: int) -> None:
        self.config = config
        self.batch_sequences = batch_sequences
        self._files: TokenFiles = open_token_files(config, vocab_size)
        if self._files.instances < batch_sequences:
            raise DataError(
                f"the token files hold {self._files.instances} sequences of {config.sequence_length} tokens, a batch "
                f"needs {batch_sequences}: use more data, shorter sequences or smaller batches"
            )
        self.batches_per_epoch = self._files.instances // batch_sequences
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def instances(self) -> int:
        return self._files.instances

    def batch(self, step_index: int, rank: int = 0, world: int = 1) -> Batch:
        """Global batch `step_index` (from 0: the first step trains on batch 0), the share of `rank`.

        Raises DataError for a token outside the vocabulary (naming file and offset) or an
        unreadable file, ValueError when `world` doesn't divide the batch.
        """
        epoch, row = locate(step_index, self.batches_per_epoch)
        instances = rank_share(self._epoch(epoch)[row], rank, world)
        windows = np.stack([self._files.window(int(i)) for i in instances])
        return self._to_batch(step_index, windows)

    def fingerprint(self) -> dict[str, str | int]:
        """What the data position means, as JSON values; `sha256` is over all the others. See `check_fingerprint`."""
        return fingerprint(self._files, self.config, self.batch_sequences)

    def _epoch(self, epoch: int) -> np.ndarray:
        held = self._order  # read once: another thread may replace it
        if held is None or held[0] != epoch:
            held = (epoch, epoch_order(self._files.instances, self.batch_sequences, self.config.seed, epoch))
            self._order = held
        return held[1]

    def _to_batch(self, step_index: int, windows: np.ndarray) -> Batch:
        targets = np.full_like(windows, IGNORE_INDEX)
        targets[:, :-1] = windows[:, 1:]
        if self._files.pad_id >= 0:
            targets[targets == self._files.pad_id] = IGNORE_INDEX
        loss_tokens = int((targets != IGNORE_INDEX).sum())
        if self.config.mask_repetition:
            targets[[is_repetitive(window) for window in windows]] = IGNORE_INDEX
        return Batch(
            step_index=step_index,
            tokens=torch.from_numpy(windows),
            targets=torch.from_numpy(targets),
            document_ids=torch.from_numpy(document_ids(windows, self._files.eos_id)),
            loss_tokens=loss_tokens,
        )


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
