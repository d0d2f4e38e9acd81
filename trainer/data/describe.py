"""What a configuration's data is: files, instances, epochs, tokens by label, and the first instances as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.config import TrainConfig
from trainer.data.epochs import Epochs
from trainer.data.errors import DataError
from trainer.data.packed_files import PackedFiles
from trainer.data.token_files import TokenFiles, open_token_files
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer


def describe(config: TrainConfig, vocab_size: int, shown: int, tokenizer: Tokenizer | None) -> dict:
    """JSON values; `first` holds the first `shown` instances of the global order. Raises DataError or OSError."""
    files = open_token_files(config.data, vocab_size)
    folder = Path(config.data.work_dir or Path(config.run_dir) / "cache")
    cache = folder if folder.is_dir() else None
    source: TokenFiles | PackedFiles = files
    if config.data.packing == "best_fit":
        source = PackedFiles(files, config.data.long_documents, cache)
    batch = config.batch_tokens // config.data.sequence_length
    if source.instances < batch:
        raise DataError(f"the token files hold {source.instances} sequences, a batch needs {batch}")
    per_epoch = source.instances // batch
    return {
        "files": len(files.files),
        "bytes": sum(file.bytes for file in files.files),
        "dtype": files.dtype.name,
        "vocab_size": files.vocab_size,
        "eos_id": files.eos_id,
        "pad_id": files.pad_id,
        "label_masks": files.has_masks,
        "packing": config.data.packing,
        "instances": source.instances,
        "sequence_length": config.data.sequence_length,
        "batch_sequences": batch,
        "batches_per_epoch": per_epoch,
        "epochs": round(config.steps / per_epoch, 4),
        "tokens": sum(file.bytes for file in files.files) // files.dtype.itemsize,
        "tokens_by_label": _tokens_by_label(files),
        "first": _first(source, Epochs(source.instances, batch, config.data.seed, cache), min(shown, batch), tokenizer),
    }


def tokenizer_for(name: str, vocab_size: int) -> Tokenizer | None:
    """`name` is "byte", a tokenizer.json, or "": bytes where the vocabulary is theirs. Raises SourceError."""
    if name and name != "byte":
        return HuggingFaceTokenizer(Path(name))
    return ByteTokenizer() if name or vocab_size in ByteTokenizer.vocabularies else None


def _tokens_by_label(files: TokenFiles) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in files.files:
        found[file.label] = found.get(file.label, 0) + file.bytes // files.dtype.itemsize
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _first(source: TokenFiles | PackedFiles, epochs: Epochs, shown: int, tokenizer: Tokenizer | None) -> list[dict]:
    found = []
    for instance in epochs.row(0)[:shown].tolist() if shown else ():
        window = source.window(instance)
        allowed = source.is_target(instance)
        each = {"instance": instance, "tokens": window[:32].tolist()}
        if allowed is not None:
            each["targets"] = int(np.count_nonzero(allowed[1:]))
        if tokenizer is not None:
            each["text"] = tokenizer.decode(window)[:200]
        found.append(each)
    return found
