"""SHA-256 of files, JSON documents and tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: object) -> str:
    """Hexadecimal SHA-256 of a JSON value in canonical form: sorted keys, no spaces, ASCII.

    Raises ValueError for NaN and infinities, TypeError for what JSON can't hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def state_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 over named local tensors: each one's name, dtype, shape and raw bytes, in the order of names.

    Equal digests mean equal bits: -0.0 differs from 0.0, and NaN payloads count.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        total.update(f"{len(head)}:{head}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
