"""What a data position means: which tokens, in which order. A run is resumed only on an equal fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trainer.config import DataConfig
from trainer.data.order import ORDER_RULE, order_probe
from trainer.data.shared_cache import shared_array
from trainer.data.token_files import TokenFiles

_EDGE_BYTES = 65536  # of head and of tail: tells files apart without reading terabytes
_SHARED_FROM = 64  # files: from there on it is cheaper to ask the cache than to read them
_THREADS = 16


def fingerprint(
    files: TokenFiles, config: DataConfig, batch_sequences: int, packing: str = "", cache: Path | None = None
) -> dict[str, str | int]:
    """Fields by meaning, so that a mismatch can say what differs; `sha256` is over all others.

    `contents` is over the first and last 64 KiB of each file, `label_masks` likewise, `packing` over which tokens are in
    which instance. Folders don't count, so data may move. In the folder `cache` processes share what they read of many
    files. Raises OSError.
    """
    masks = [file.label_mask for file in files.files if file.label_mask is not None]
    fields: dict[str, str | int] = {
        "order_rule": ORDER_RULE,
        "order_probe": order_probe(config.seed),
        "dtype": files.dtype.name,
        "eos_id": files.eos_id,
        "sequence_length": files.sequence_length,
        "batch_sequences": batch_sequences,
        "seed": config.seed,
        "mask_repetition": int(config.mask_repetition),
        "packing": packing,
        "files": len(files.files),
        "names": _digest(file.path.name for file in files.files),
        "sizes": _digest(str(file.bytes) for file in files.files),
        "contents": _contents([file.path for file in files.files], cache),
        "label_masks": _contents(masks, cache) if masks else "",
    }
    return {**fields, "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}


def _contents(paths: list[Path], cache: Path | None) -> str:
    def read() -> str:
        with ThreadPoolExecutor(_THREADS) as pool:
            return _digest(pool.map(_edges_digest, paths))

    if cache is None or len(paths) < _SHARED_FROM:
        return read()
    stats = [(str(path.absolute()), path.stat()) for path in paths]
    about = _digest(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    found = shared_array(
        cache, f"contents-{about[:32]}", np.dtype("u1"), lambda: np.frombuffer(read().encode(), np.uint8)
    )
    return found[0:64].tobytes().decode()


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _edges_digest(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(_EDGE_BYTES)
        stream.seek(max(0, path.stat().st_size - _EDGE_BYTES))
        return hashlib.sha256(head + stream.read(_EDGE_BYTES)).hexdigest()
