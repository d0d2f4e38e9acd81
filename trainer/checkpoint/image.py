"""A shard as one span of bytes, laid out as a safetensors file: the memory that it is copied to is what is written.

safetensors' own save_file copies each tensor into bytes of its own first and gives no way to digest what it writes.
The format is 8 bytes of header length (little endian), a JSON header, and the tensors in C order without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.checkpoint.manifest import StoredTensor

# Spaces after the header let the tensors begin at a multiple, as safetensors does with 8: here, whole pages for the copy.
_ALIGNMENT = 4096
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class ShardTensor:
    """This shard's piece of a tensor: `local` holds rows [offset, offset + len(local)) of one of shape `global_shape`.

    Empty pieces are allowed (FSDP2 makes them). A tensor without dimensions is held by one shard, at offset 0.
    """

    local: torch.Tensor
    global_shape: tuple[int, ...]
    offset: int

    def stored(self, begin: int) -> StoredTensor:
        dtype = str(self.local.dtype).removeprefix("torch.")
        length = len(self.local) if self.global_shape else 1
        return StoredTensor(tuple(self.global_shape), dtype, self.offset, length, begin)


@dataclass(frozen=True)
class ImagePlan:
    """Where everything goes: `head` at byte 0, each tensor at its span (begin, bytes), `size` bytes in all."""

    head: bytes
    tensors: dict[str, StoredTensor]
    spans: dict[str, tuple[int, int]]
    size: int


def plan_image(pieces: Mapping[str, ShardTensor]) -> ImagePlan:
    """The layout of a shard's file: wide dtypes first, then by name, as safetensors orders them.

    Raises KeyError for a dtype that safetensors does not have.
    """
    order = sorted(pieces, key=lambda name: (-pieces[name].local.element_size(), name))
    header, begins, at = {}, {}, 0
    for name in order:
        local = pieces[name].local
        begins[name] = at
        header[name] = {
            "dtype": _DTYPES[local.dtype],
            "shape": list(local.shape),
            "data_offsets": [at, at + local.nbytes],
        }
        at += local.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    spans = {name: (len(head) + begins[name], pieces[name].local.nbytes) for name in order}
    stored = {name: pieces[name].stored(spans[name][0]) for name in order}
    return ImagePlan(head, stored, spans, len(head) + at)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 (bytes,) over the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8)
