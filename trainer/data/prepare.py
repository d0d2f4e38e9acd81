"""Turns texts into token files in OLMo-core's layout, with a manifest. Equal sources give equal bytes.

OUT/part-000.npy ...   raw arrays without header, named .npy as OLMo-core names them; EOS after each document
OUT/manifest.json      tokenizer, dtype, vocabulary, tokens and digest of each file, unigram entropy, what was skipped
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data.documents import Skipped, documents, source_files
from trainer.data.errors import SourceError
from trainer.data.special_ids import MANIFEST
from trainer.data.token_files import token_dtype
from trainer.data.tokenizer import Tokenizer

_FORMAT = 1


def prepare(
    sources: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    max_bytes: int = 0,
    skip_bad: bool = False,
    overwrite: bool = False,
    part_bytes: int = 1 << 30,
) -> dict:
    """Write `out` aside and rename it into place; returns its manifest.

    max_bytes: take documents in order until their UTF-8 bytes reach it, the last one cut at a character (0: all).
    part_bytes: a file that has reached it takes no further document. Raises OSError, SourceNotFoundError, and
    SourceError for bad input, no document at all, or an `out` that exists while `overwrite` is false.
    """
    if out.exists() and not overwrite:
        raise SourceError(f"{out} exists: choose another folder, or --overwrite it")
    files = source_files(sources)
    aside = out.with_name(f".{out.name}.preparing-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    skipped = Skipped()
    writer = _PartWriter(aside, tokenizer, part_bytes)
    try:
        for text in _first_bytes(documents(files, skip_bad, skipped), max_bytes):
            writer.add(text)
        writer.close()
        if writer.documents == 0:
            raise SourceError(f"no text in {len(files)} source files ({skipped.undecodable_files} were not UTF-8)")
        manifest = writer.manifest() | {"source_files": len(files), "skipped": asdict(skipped)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _replace(aside, out)
    except BaseException:
        writer.close()
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return manifest


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the token frequencies `counts`, int (V,): ln N - sum(c ln c) / N.

    A model that ignores context can't have a lower loss on these tokens, so a lower one shows that it learns.
    """
    total = int(counts.sum())
    return math.log(total) - math.fsum(c * math.log(c) for c in counts.tolist() if c) / total if total else 0.0


class _PartWriter:
    """Encodes documents into consecutive files, counting and hashing as it goes."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, part_bytes: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._part_bytes = part_bytes
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._parts: list[dict] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.documents = 0
        self._source_bytes = 0

    def add(self, text: str) -> None:
        ids = np.append(self._tokenizer.encode(text), np.uint32(self._tokenizer.eos_id))
        self._counts += np.bincount(ids, minlength=len(self._counts))
        raw = ids.astype(self._dtype).tobytes()
        self._current_file().write(raw)
        self._digest.update(raw)
        part = self._parts[-1]
        part["documents"] += 1
        part["tokens"] += len(ids)
        part["bytes"] += len(raw)
        self.documents += 1
        self._source_bytes += len(text.encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._parts[-1]["sha256"] = self._digest.hexdigest()

    def manifest(self) -> dict:
        tokenizer = self._tokenizer
        return {
            "format": _FORMAT,
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "dtype": self._dtype.name,
            "tokens": int(self._counts.sum()),
            "documents": self.documents,
            "source_bytes": self._source_bytes,
            "unigram_entropy_nats": unigram_entropy(self._counts),
            "files": self._parts,
        }

    def _current_file(self) -> BinaryIO:
        if self._file is None or self._parts[-1]["bytes"] >= self._part_bytes:
            self.close()
            name = f"part-{len(self._parts):03d}.npy"
            self._file = (self._folder / name).open("wb")
            self._digest = hashlib.sha256()
            self._parts.append({"name": name, "documents": 0, "tokens": 0, "bytes": 0, "sha256": ""})
        return self._file


def _first_bytes(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    left = max_bytes
    for text in texts:
        raw = text.encode()
        if max_bytes and len(raw) >= left:
            cut = raw[:left].decode(errors="ignore")
            if cut:
                yield cut
            return
        left -= len(raw)
        yield text


def _replace(aside: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
    if out.exists():
        os.rename(out, old)
    os.rename(aside, out)
    shutil.rmtree(old, ignore_errors=True)
