"""What a data position means: which tokens, in which order. A run is resumed only on an equal fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from trainer.config import DataConfig
from trainer.data.order import ORDER_RULE, order_probe
from trainer.data.token_files import TokenFile, TokenFiles

_EDGE_BYTES = 65536  # of head and of tail: tells files apart without reading terabytes


def fingerprint(files: TokenFiles, config: DataConfig, batch_sequences: int) -> dict[str, str | int]:
    """Fields by meaning, so that a mismatch can say what differs; `sha256` is over all others.

    `contents` is over the first and last 64 KiB of each file. Folders don't count, so data may move. Raises OSError.
    """
    fields: dict[str, str | int] = {
        "order_rule": ORDER_RULE,
        "order_probe": order_probe(config.seed),
        "dtype": files.dtype.name,
        "sequence_length": files.sequence_length,
        "batch_sequences": batch_sequences,
        "seed": config.seed,
        "mask_repetition": int(config.mask_repetition),
        "files": len(files.files),
        "names": _digest(file.path.name for file in files.files),
        "sizes": _digest(str(file.bytes) for file in files.files),
        "contents": _digest(_edges_digest(file) for file in files.files),
    }
    return {**fields, "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _edges_digest(file: TokenFile) -> str:
    with file.path.open("rb") as stream:
        head = stream.read(_EDGE_BYTES)
        stream.seek(max(0, file.bytes - _EDGE_BYTES))
        return hashlib.sha256(head + stream.read(_EDGE_BYTES)).hexdigest()
