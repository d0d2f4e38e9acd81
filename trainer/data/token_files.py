"""Token files in OLMo-core's layout, `.npy` by name: headerless raw arrays, cut into windows of the sequence length.

Windows are read, not mapped: a file cut short under a mapping is a SIGBUS, under a read an error that names it.
"""

from __future__ import annotations

from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config import DataConfig
from trainer.data.errors import DataError, VocabularyError
from trainer.data.sources import Source, list_sources
from trainer.data.special_ids import special_ids

_NUMPY_MAGIC = b"\x93NUMPY"
_THREADS = 16  # of opening files: on a shared file system each costs a round trip


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
    label: str = ""
    label_mask: Path | None = None

    def read(self, begin: int, count: int, dtype: np.dtype, vocab_size: int) -> np.ndarray:
        """Tokens [begin, begin + count), int64. Raises VocabularyError or DataError."""
        tokens = _read(self.path, dtype, begin, count)
        wrong = np.flatnonzero(tokens >= vocab_size)
        if len(wrong):
            at = int(wrong[0])
            raise VocabularyError(
                f"{self.path}: token {int(tokens[at])} at offset {begin + at} is outside the vocabulary "
                f"of {vocab_size}; was it prepared with another tokenizer, or as another type (data.dtype)?"
            )
        return tokens.astype(np.int64)

    def read_mask(self, begin: int, count: int) -> np.ndarray | None:
        """Which of these tokens are targets, bool; None without a label mask. Raises DataError."""
        return None if self.label_mask is None else _read(self.label_mask, np.dtype("u1"), begin, count) != 0


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

    @property
    def has_masks(self) -> bool:
        return self.files[0].label_mask is not None

    def window(self, instance: int) -> np.ndarray:
        """int64 (sequence_length,). Raises VocabularyError for a token outside, DataError for a file cut or unreadable."""
        file, begin = self._locate(instance)
        return file.read(begin, self.sequence_length, self.dtype, self.vocab_size)

    def is_target(self, instance: int) -> np.ndarray | None:
        """Which tokens of the window may be targets, bool (sequence_length,); None for all. Raises DataError."""
        file, begin = self._locate(instance)
        return file.read_mask(begin, self.sequence_length)

    def label_of(self, instance: int) -> str:
        return self._locate(instance)[0].label

    def _locate(self, instance: int) -> tuple[TokenFile, int]:
        if not 0 <= instance < self.instances:
            raise IndexError(f"instance {instance} of {self.instances}")
        file = self.files[bisect_right(self.files, instance, key=lambda each: each.first) - 1]
        return file, (instance - file.first) * self.sequence_length


def open_token_files(config: DataConfig, vocab_size: int) -> TokenFiles:
    """Find and measure the files; reads none of their tokens. `vocab_size` is the model's.

    Files without one whole window hold no instance. Raises DataError when none is left or one isn't of this vocabulary,
    SourceNotFoundError for a missing one.
    """
    vocabulary = config.vocab_size or vocab_size
    if vocabulary > vocab_size:
        raise DataError(f"the tokenizer's vocabulary of {vocabulary} doesn't fit the model's of {vocab_size}")
    dtype = np.dtype(config.dtype).newbyteorder("<") if config.dtype else token_dtype(vocabulary)
    sources = list_sources(config)
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(lambda source: _measure(source, dtype), sources))
    files: list[TokenFile] = []
    first = 0
    for source, size in zip(sources, sizes, strict=True):
        instances = size // dtype.itemsize // config.sequence_length
        files.append(TokenFile(source.path, size, first, instances, source.label, source.label_mask))
        first += instances
    if first == 0 and config.packing == "none":
        raise DataError(
            f"no token file holds a whole sequence of {config.sequence_length} tokens; the largest of {len(files)} has "
            f"{max(file.bytes for file in files) // dtype.itemsize}"
        )
    eos_id, pad_id = special_ids(config, vocabulary, dtype, [file.path for file in files])
    return TokenFiles(tuple(files), dtype, config.sequence_length, vocabulary, eos_id, pad_id)


def _measure(source: Source, dtype: np.dtype) -> int:
    """Bytes of a token file. Raises DataError when it, or its label mask, isn't what it should be."""
    size = _raw_size(source.path, dtype)
    if size % dtype.itemsize:
        raise DataError(
            f"{source.path}: {size} bytes are no array of {dtype.name}; was it prepared for another vocabulary?"
        )
    if source.label_mask is not None:
        entries, tokens = _raw_size(source.label_mask, np.dtype("bool")), size // dtype.itemsize
        if entries != tokens:
            raise DataError(f"{source.label_mask} has {entries} entries for the {tokens} tokens of {source.path}")
    return size


def _raw_size(path: Path, dtype: np.dtype) -> int:
    try:
        with path.open("rb") as file:
            if file.read(len(_NUMPY_MAGIC)) == _NUMPY_MAGIC:
                raise DataError(
                    f"{path} has NumPy's header, as np.save writes; token files are raw arrays: convert it with "
                    f"np.load(path).astype('{dtype.name}').tofile(new_path)"
                )
            return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def _read(path: Path, dtype: np.dtype, begin: int, count: int) -> np.ndarray:
    try:
        found = np.fromfile(path, dtype, count=count, offset=begin * dtype.itemsize)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if len(found) < count:
        raise DataError(f"{path} ends before token {begin + count}: it was cut after the start")
    return found
