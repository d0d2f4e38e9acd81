"""Where documents end and what pads: as configured, as prepared, or by the vocabulary's size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainer.config import DataConfig
from trainer.data.errors import DataError

MANIFEST = "manifest.json"
# EOS by vocabulary size, for token files without our manifest: our bytes and Olmo's, plain and padded.
KNOWN_EOS = {258: 256, 384: 256, 100278: 100257, 100352: 100257}
KNOWN_PAD = {258: 257, 384: 257, 100278: 100277, 100352: 100277}


def special_ids(config: DataConfig, vocabulary: int, dtype: np.dtype, paths: Iterable[Path]) -> tuple[int, int]:
    """(EOS, PAD) of token files: as configured, else as the manifests beside them say, else by the vocabulary's size.

    PAD is only known so where instances are padded; -1 is for unknown. Raises DataError when the manifests disagree.
    """
    eos = KNOWN_EOS.get(vocabulary, -1)
    pad = KNOWN_PAD.get(vocabulary, -1) if config.packing != "none" else -1
    folders = sorted({path.parent for path in paths})
    prepared = {folder: found for folder in folders if (found := _prepared(folder / MANIFEST))}
    for folder, found in prepared.items():
        if found["dtype"] != dtype.name:
            raise DataError(
                f"{folder} was prepared as {found['dtype']} for a vocabulary of {found['vocab_size']}; a vocabulary of "
                f"{vocabulary} is read as {dtype.name}. Set data.vocab_size: {found['vocab_size']}"
            )
        eos, pad = found["eos_id"], found["pad_id"]
    if len({found["tokenizer"] for found in prepared.values()}) > 1:
        raise DataError(f"token files of different tokenizers: {', '.join(str(folder) for folder in prepared)}")
    return (config.eos_id if config.eos_id >= 0 else eos), (config.pad_id if config.pad_id >= 0 else pad)


def _prepared(path: Path) -> dict:
    """The manifest's fields; none without one, or when another tool wrote it."""
    if not path.is_file():
        return {}
    names = ("tokenizer", "dtype", "vocab_size", "eos_id", "pad_id")
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or manifest.keys().isdisjoint(names):
            return {}
        return {name: manifest[name] for name in names}
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} is no manifest of prepared token files: {error}") from error
