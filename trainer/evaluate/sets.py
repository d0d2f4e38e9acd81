"""Held-out sets as windows: from token files as training reads them, or from texts that are tokenised at the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config import DataConfig, EvaluationConfig, EvaluationSet
from trainer.data.documents import Skipped, labelled_documents
from trainer.data.errors import DataError, SourceNotFoundError
from trainer.data.token_files import open_token_files
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer


@dataclass(frozen=True)
class HeldOut:
    """One set. Window i has the label `labels[i]`, "" for none.

    read(i) gives its tokens, int64 (T,), and which of them may be targets, bool (T,). token_bytes: bytes of each token id,
    float64 (vocabulary,); None where nobody knows.
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    eos_id: int
    token_bytes: np.ndarray | None


def open_sets(evaluation: EvaluationConfig, data: DataConfig, vocab_size: int) -> tuple[HeldOut, ...]:
    """All sets of a configuration; `data` is the training data's, whose sequence length and tokenizer they share.

    Raises DataError, SourceError or SourceNotFoundError, naming the set.
    """
    tokenizer = _tokenizer(evaluation, data.vocab_size or vocab_size)
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"evaluation.tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, the model only {vocab_size}"
        )
    found = []
    for each in evaluation.sets:
        try:
            opened = _of_texts(each, data, tokenizer) if each.texts else _of_files(each, data, vocab_size)
        except DataError as error:
            raise type(error)(f"evaluation set {each.name}: {error}") from error
        labels, read, eos_id = opened
        found.append(HeldOut(each.name, labels, read, eos_id, _token_bytes(each, tokenizer, vocab_size)))
    return tuple(found)


_Opened = tuple[tuple[str, ...], Callable[[int], tuple[np.ndarray, np.ndarray]], int]


def _of_files(chosen: EvaluationSet, data: DataConfig, vocab_size: int) -> _Opened:
    config = DataConfig(
        paths=chosen.paths,
        mix=chosen.mix,
        mix_base=data.mix_base,
        mix_tokenizer=data.mix_tokenizer,
        sequence_length=data.sequence_length,
        vocab_size=data.vocab_size,
        dtype=data.dtype,
        eos_id=data.eos_id,
        pad_id=data.pad_id,
    )
    files = open_token_files(config, vocab_size)
    instances = _spread(files.instances, chosen.max_sequences)
    labels = tuple(chosen.label or (files.label_of(i) if chosen.mix else "") for i in instances)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        window = files.window(instances[index])
        allowed = files.is_target(instances[index])
        return window, np.ones(len(window), dtype=bool) if allowed is None else allowed

    return labels, read, files.eos_id


def _of_texts(chosen: EvaluationSet, data: DataConfig, tokenizer: Tokenizer | None) -> _Opened:
    """Documents of a label one after another, EOS after each, in windows; the last one is padded, so that none is lost."""
    if tokenizer is None:
        raise DataError("texts need a tokenizer: set evaluation.tokenizer")
    missing = [path for path in chosen.texts if not Path(path).is_file()]
    if missing:
        raise SourceNotFoundError(f"text file {missing[0]} doesn't exist")
    by_label: dict[str, list[np.ndarray]] = {}
    for text, label in labelled_documents([Path(path) for path in chosen.texts], Skipped()):
        ids = np.append(tokenizer.encode(text), np.uint32(tokenizer.eos_id)).astype(np.int64)
        by_label.setdefault(chosen.label or label, []).append(ids)
    if not by_label:
        raise DataError(f"no text in {', '.join(chosen.texts)}")
    length = data.sequence_length
    windows: list[tuple[str, np.ndarray]] = []
    for label, documents in by_label.items():
        tokens = np.concatenate(documents)
        windows += [(label, tokens[begin : begin + length]) for begin in range(0, len(tokens), length)]
    windows = [windows[i] for i in _spread(len(windows), chosen.max_sequences)]

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = windows[index][1]
        padding = (0, length - len(tokens))
        return np.pad(tokens, padding, constant_values=tokenizer.eos_id), np.pad(np.ones(len(tokens), bool), padding)

    return tuple(label for label, _ in windows), read, tokenizer.eos_id


def _spread(count: int, most: int) -> list[int]:
    """`most` of `count` indices, evenly spread, or all."""
    return [i * count // most for i in range(most)] if 0 < most < count else list(range(count))


def _tokenizer(evaluation: EvaluationConfig, vocabulary: int) -> Tokenizer | None:
    if evaluation.tokenizer and evaluation.tokenizer != "byte":
        return HuggingFaceTokenizer(Path(evaluation.tokenizer), evaluation.eos)
    return ByteTokenizer() if evaluation.tokenizer or vocabulary in ByteTokenizer.vocabularies else None


def _token_bytes(chosen: EvaluationSet, tokenizer: Tokenizer | None, vocab_size: int) -> np.ndarray | None:
    if chosen.bytes_per_token:
        return np.full(vocab_size, chosen.bytes_per_token)
    if tokenizer is None:
        return None
    table = np.zeros(vocab_size)
    table[: tokenizer.vocab_size] = tokenizer.token_bytes()
    return table
