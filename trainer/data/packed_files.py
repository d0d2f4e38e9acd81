"""Instances of whole documents: token files packed by `trainer.data.packing`, each by itself."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trainer.data.errors import DataError
from trainer.data.packing import document_spans, packed_index
from trainer.data.shared_cache import shared_array
from trainer.data.token_files import TokenFile, TokenFiles

_PACKING_RULE = 1
_THREADS = 4


class PackedFiles:
    """As TokenFiles, but instance i is the i-th of the packed ones, counted through all files.

    `folder`: where packings are kept for all processes; None keeps them in memory alone. Reads every token once at the first
    start. Raises DataError: no EOS known, no document, a file that can't be read.
    """

    has_masks = True  # of the padding, at least

    def __init__(self, files: TokenFiles, long_documents: str, folder: Path | None = None) -> None:
        if files.eos_id < 0:
            raise DataError("packing needs to know where documents end: set data.eos_id")
        self._files = files
        self._long_documents = long_documents
        self._pad_id = files.pad_id if files.pad_id >= 0 else files.eos_id
        with ThreadPoolExecutor(_THREADS) as pool:
            self._packings = list(pool.map(lambda file: self._packing(file, folder), files.files))
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self._packings)]).tolist()
        if not self.instances:
            raise DataError(f"no document ends in {len(files.files)} token files: EOS {files.eos_id} isn't in them")

    @property
    def instances(self) -> int:
        return self._firsts[-1]

    @property
    def digest(self) -> str:
        """SHA-256 of which tokens are in which instance."""
        found = hashlib.sha256()
        for offsets, pieces in self._packings:
            found.update(offsets.astype("<i8").tobytes() + pieces.astype("<i8").tobytes())
        return found.hexdigest()

    def window(self, instance: int) -> np.ndarray:
        """int64 (sequence_length,), padded at its end. Raises VocabularyError or DataError."""
        file, pieces = self._locate(instance)
        files = self._files
        parts = [file.read(begin, end - begin, files.dtype, files.vocab_size) for begin, end in pieces]
        return self._padded(np.concatenate(parts), self._pad_id)

    def is_target(self, instance: int) -> np.ndarray:
        """bool (sequence_length,): the label mask where there is one; never the padding. Raises DataError."""
        file, pieces = self._locate(instance)
        masks = [file.read_mask(begin, end - begin) for begin, end in pieces]
        kept = [
            np.ones(end - begin, dtype=bool) if mask is None else mask
            for mask, (begin, end) in zip(masks, pieces, strict=True)
        ]
        return self._padded(np.concatenate(kept), False)

    def _locate(self, instance: int) -> tuple[TokenFile, list[list[int]]]:
        if not 0 <= instance < self.instances:
            raise IndexError(f"instance {instance} of {self.instances}")
        number = bisect_right(self._firsts, instance) - 1
        offsets, pieces = self._packings[number]
        inside = instance - self._firsts[number]
        return self._files.files[number], pieces[offsets[inside] : offsets[inside + 1]].tolist()

    def _padded(self, values: np.ndarray, filler: int | bool) -> np.ndarray:
        return np.pad(values, (0, self._files.sequence_length - len(values)), constant_values=filler)

    def _packing(self, file: TokenFile, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, pieces) of one file; its name in the cache says what it depends on, with the file's time of change."""
        if folder is None:
            index = self._pack(file)
        else:
            about = (
                *(_PACKING_RULE, str(file.path.absolute()), file.bytes, file.path.stat().st_mtime_ns),
                *(self._files.dtype.name, self._files.eos_id, self._files.sequence_length, self._long_documents),
            )
            name = f"packing-{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.i8"
            found = shared_array(folder, name, np.dtype("<i8"), lambda: self._pack(file))
            index = found[0 : found.size]
        count = int(index[0])
        return index[1 : count + 2], index[count + 2 :].reshape(-1, 2)

    def _pack(self, file: TokenFile) -> np.ndarray:
        try:
            tokens = np.fromfile(file.path, self._files.dtype)
        except OSError as error:
            raise DataError(f"{file.path} can't be read: {error.strerror}") from error
        spans = document_spans(tokens, self._files.eos_id, self._files.sequence_length, self._long_documents)
        return packed_index(spans, self._files.sequence_length)
