"""Stored tensors, found by name and read by rows: a Hugging Face folder, a safetensors file, or a torch file.

Nothing is unpickled but a torch file that is named as such, and that by torch's weights_only loader.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.hugging_face.configuration import read_json
from trainer.hugging_face.errors import HuggingFaceError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A floating-point tensor on disk; `rows(begin, end)` reads these rows of dimension 0."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a Hugging Face folder, a .safetensors file or a torch file, by its stored name.

    Reads headers only. Raises HuggingFaceError: nothing there, pickles in a folder, a file that is missing, cut short or
    damaged, an index that doesn't fit its files, a tensor that isn't floating point.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise HuggingFaceError(f"{path} doesn't exist")
    return _open_torch(path) if path.suffix in _TORCH_SUFFIXES else _open_safetensors(path)


def _open_folder(folder: Path) -> dict[str, StoredTensor]:
    if (folder / INDEX).is_file():
        return _open_sharded(folder)
    if (folder / WEIGHTS).is_file():
        return _open_safetensors(folder / WEIGHTS)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _TORCH_SUFFIXES)
    if pickles:
        raise HuggingFaceError(
            f"{folder} holds no safetensors but {pickles[0]}, a pickle, which could run any code: convert it with "
            "save_pretrained of transformers, or name the file itself to have its tensors read without running any"
        )
    if list(folder.glob("**/.metadata")):
        raise HuggingFaceError(
            f"{folder} is a distributed checkpoint of OLMo-core: write one file of it with unshard_checkpoint of "
            "olmo_core.distributed.checkpoint, and import that"
        )
    raise HuggingFaceError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")


def _open_sharded(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise HuggingFaceError(f"{folder / INDEX} has no weight_map from names to files")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(index.values())):
        if Path(file).name != file:
            raise HuggingFaceError(f"{folder / INDEX} names {file}, which is no file of this folder")
        if not (folder / file).is_file():
            raise HuggingFaceError(f"{folder / INDEX} names {file}, which doesn't exist")
        for name, tensor in _open_safetensors(folder / file).items():
            if index.get(name) != file:
                raise HuggingFaceError(f"{folder / file} holds {name}, which the index doesn't have there")
            tensors[name] = tensor
    absent = [name for name in index if name not in tensors]
    if absent:
        raise HuggingFaceError(f"{folder / INDEX} has {absent[0]} in {index[absent[0]]}, which doesn't hold it")
    return tensors


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise HuggingFaceError(f"{path} is cut short or no safetensors file: {error}") from error
    return {name: _from_slice(path, name, piece) for name, piece in slices.items()}


def _from_slice(path: Path, name: str, piece: Any) -> StoredTensor:
    dtype = _SAFETENSORS_DTYPES.get(piece.get_dtype())
    if dtype is None:
        raise HuggingFaceError(
            f"{path}: {name} is of type {piece.get_dtype()}, weights are float32, bfloat16 or float16"
        )

    def rows(begin: int, end: int) -> Tensor:
        try:
            return piece[begin:end]
        except (OSError, SafetensorError) as error:
            raise HuggingFaceError(f"{path}: {name} can't be read: {error}") from error

    return StoredTensor(tuple(piece.get_shape()), dtype, rows)


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HuggingFaceError(f"{path} is no torch file of tensors alone: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise HuggingFaceError(f"{path} is no state dict: it must map names to tensors and hold nothing else")
    return {name: _from_tensor(path, name, tensor) for name, tensor in state.items()}


def _from_tensor(path: Path, name: str, tensor: Tensor) -> StoredTensor:
    if tensor.dtype not in _SAFETENSORS_DTYPES.values():
        raise HuggingFaceError(f"{path}: {name} is of type {tensor.dtype}, weights are float32, bfloat16 or float16")
    return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda begin, end: tensor[begin:end])
