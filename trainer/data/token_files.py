"""Token files in OLMo-core's layout, `.npy` by name: headerless raw arrays, cut into windows of the sequence length.

Windows are read, not mapped: a file cut short under a mapping is a SIGBUS, under a read an error that names it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config import DataConfig
from trainer.data.errors import DataError, SourceNotFoundError, VocabularyError

MANIFEST = "manifest.json"
# EOS by vocabulary size, for token files without our manifest: our bytes and Olmo's, plain and padded.
_KNOWN_EOS = {258: 256, 384: 256, 100278: 100257, 100352: 100257}


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds ids below `vocab_size`, little-endian. Raises DataError outside 1..2^32."""
    for name in ("u1", "<u2", "<u4"):
        if 0 < vocab_size <= np.iinfo(name).max + 1:
            return np.dtype(name)
    raise DataError(f"no token type holds a vocabulary of {vocab_size}")


@dataclass(frozen=True)
class TokenFile:
    path: Path
    bytes: int
    first: int  # its first instance, counted over all files
    instances: int


@dataclass(frozen=True)
class TokenFiles:
    """The files in order. Instance i is the i-th window, counted through all files; remainders of files are dropped.

    eos_id and pad_id are -1 when unknown.
    """

    files: tuple[TokenFile, ...]
    dtype: np.dtype
    sequence_length: int
    vocab_size: int
    eos_id: int
    pad_id: int

    @property
    def instances(self) -> int:
        return self.files[-1].first + self.files[-1].instances

    def window(self, instance: int) -> np.ndarray:
        """int64 (sequence_length,). Raises VocabularyError for a token outside, DataError for a file cut or unreadable."""
        if not 0 <= instance < self.instances:
            raise IndexError(f"instance {instance} of {self.instances}")
        file = self.files[bisect_right(self.files, instance, key=lambda each: each.first) - 1]
        begin = (instance - file.first) * self.sequence_length
        try:
            tokens = np.fromfile(file.path, self.dtype, count=self.sequence_length, offset=begin * self.dtype.itemsize)
        except OSError as error:
            raise DataError(f"{file.path} can't be read: {error.strerror}") from error
        if len(tokens) < self.sequence_length:
            raise DataError(f"{file.path} ends before token {begin + self.sequence_length}: it was cut after the start")
        wrong = np.flatnonzero(tokens >= self.vocab_size)
        if len(wrong):
            at = int(wrong[0])
            raise VocabularyError(
                f"{file.path}: token {int(tokens[at])} at offset {begin + at} is outside the vocabulary "
                f"of {self.vocab_size}; was it prepared with another tokenizer?"
            )
        return tokens.astype(np.int64)


def open_token_files(config: DataConfig, vocab_size: int) -> TokenFiles:
    """Find and measure the files; reads none of their tokens. `vocab_size` is the model's.

    Files without one whole window hold no instance. Raises DataError when none is left or one isn't of this vocabulary,
    SourceNotFoundError for a missing one.
    """
    vocabulary = config.vocab_size or vocab_size
    if vocabulary > vocab_size:
        raise DataError(f"the tokenizer's vocabulary of {vocabulary} doesn't fit the model's of {vocab_size}")
    dtype = token_dtype(vocabulary)
    files: list[TokenFile] = []
    first = 0
    for path in list_paths(config):
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise DataError(
                f"{path}: {size} bytes are no array of {dtype.name}; was it prepared for another vocabulary?"
            )
        instances = size // dtype.itemsize // config.sequence_length
        files.append(TokenFile(path, size, first, instances))
        first += instances
    if first == 0:
        raise DataError(
            f"no token file holds a whole sequence of {config.sequence_length} tokens; the largest of {len(files)} has "
            f"{max(file.bytes for file in files) // dtype.itemsize}"
        )
    eos_id, pad_id = _special_ids(config, vocabulary, dtype, files)
    return TokenFiles(tuple(files), dtype, config.sequence_length, vocabulary, eos_id, pad_id)


def list_paths(config: DataConfig) -> list[Path]:
    """The token files in order: each of `paths` (a folder stands for its *.npy, sorted), or those of the mix file.

    Raises DataError when there are none, SourceNotFoundError for one that doesn't exist.
    """
    given = _mix_paths(config) if config.mix else [Path(path) for path in config.paths]
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(path.glob("*.npy"))
            if not inside:
                raise DataError(f"{path} holds no token file (*.npy)")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise SourceNotFoundError(f"token file {path} doesn't exist")
    if not paths:
        raise DataError("no token files are given: set data.paths or data.mix")
    return paths


def _mix_paths(config: DataConfig) -> list[Path]:
    """Lines `label,path`; {TOKENIZER} is replaced; relative paths begin at the mix file; blank lines, # are skipped."""
    mix = Path(config.mix)
    if not mix.is_file():
        raise SourceNotFoundError(f"mix file {mix} doesn't exist")
    paths = []
    for number, line in enumerate(mix.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        label, comma, path = line.partition(",")
        if not comma or not label.strip() or not path.strip():
            raise DataError(f"{mix}, line {number}: expected `label,path`")
        if "{TOKENIZER}" in path and not config.mix_tokenizer:
            raise DataError(f"{mix}, line {number} names {{TOKENIZER}}: set data.mix_tokenizer")
        paths.append(mix.parent / path.strip().replace("{TOKENIZER}", config.mix_tokenizer))
    return paths


def _special_ids(config: DataConfig, vocabulary: int, dtype: np.dtype, files: list[TokenFile]) -> tuple[int, int]:
    """EOS and PAD: as configured, else as the manifests beside the files say, else by the vocabulary's size."""
    eos, pad = _KNOWN_EOS.get(vocabulary, -1), -1
    folders = sorted({file.path.parent for file in files})
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
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_bytes())
        return {name: manifest[name] for name in ("tokenizer", "dtype", "vocab_size", "eos_id", "pad_id")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no manifest of prepared token files: {error}") from error
