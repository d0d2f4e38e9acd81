"""SHA-256 of blocks of files, JSON documents and tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

# One thread hashes about 2 GB/s: blocks let threads share a file, and let a reader of a slice check what it reads alone.
BLOCK_BYTES = 16 << 20


def bytes_digest(content: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def tree_digest(blocks: Sequence[str]) -> str:
    """Digest of a file from those of its blocks: hexadecimal SHA-256 over their binary SHA-256 in order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, blocks))).hexdigest()


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
