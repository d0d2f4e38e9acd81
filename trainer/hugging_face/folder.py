"""Writes a Hugging Face folder: sharded safetensors with an index, configurations, tokenizer. Whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.files import discard, sync
from trainer.hugging_face.configuration import CONFIG, TextSettings, generation_config, to_config
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.names import released_names
from trainer.hugging_face.source import INDEX, WEIGHTS
from trainer.hugging_face.weights import as_released, is_finite
from trainer.model.config import ModelSpec
from trainer.model.count import parameter_shapes

DEFAULT_SHARD_BYTES = 5_000_000_000  # save_pretrained's "5GB" up to transformers 4
_READ_BYTES = 1 << 30  # how much is read at a time, before it is cast: bounds the memory beside the shard


@dataclass(frozen=True)
class FolderSettings:
    """`dtypes`: of each parameter, by our names. `overwrite`: replace a folder that is there. `extra`: files to add."""

    dtypes: Mapping[str, torch.dtype]
    text: TextSettings
    shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False
    extra: Mapping[str, bytes] | None = None


Read = Callable[[Sequence[str]], Mapping[str, Tensor]]


def write_folder(out: Path, spec: ModelSpec, read: Read, settings: FolderSettings) -> list[str]:
    """Write the folder `out` and return the names of its files.

    `read(names)` gives full parameters by our names, on the CPU. In memory are one shard and what is read at once, 1 GiB
    or the largest parameter. All is written and synced aside and becomes `out` by a rename.

    Raises HuggingFaceError: `out` is there and isn't to be overwritten, no class of transformers can express the model, a
    value is not finite or becomes so in its dtype, or the disk refuses.
    """
    config = {**to_config(spec, settings.text), "dtype": _common_dtype(settings.dtypes.values())}
    if out.exists() and not settings.overwrite and not _is_empty_folder(out):
        raise HuggingFaceError(f"{out} is there already; name another place, or say --overwrite")
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.mkdir(parents=True)
        for name, value in ((CONFIG, config), ("generation_config.json", generation_config(settings.text))):
            (aside / name).write_text(json.dumps(value, indent=2) + "\n")
        for name, content in (settings.extra or {}).items():
            (aside / name).write_bytes(content)
        _write_shards(aside, spec, read, settings)
        files = sorted(path.name for path in aside.iterdir())
        for path in (*(aside / name for name in files), aside):
            sync(path)
        _put_in_place(aside, out)
    except OSError as error:
        raise HuggingFaceError(f"{out} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return files


def plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Names in order, cut into shards of at most `shard_bytes`; a tensor that is larger has one of its own."""
    shards: list[list[str]] = []
    room = -1
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_shards(folder: Path, spec: ModelSpec, read: Read, settings: FolderSettings) -> None:
    released, shapes = released_names(spec), parameter_shapes(spec)
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    sizes = {name: count * settings.dtypes[name].itemsize for name, count in counts.items()}
    shards = plan_shards(sizes, settings.shard_bytes)
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        tensors: dict[str, Tensor] = {}
        for group in plan_shards({name: 4 * counts[name] for name in names}, _READ_BYTES):
            found = dict(read(group))
            for name in group:
                tensors[released[name]] = _cast(released[name], found.pop(name), settings.dtypes[name])
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read its files
    if len(shards) > 1:
        index = {
            "metadata": {"total_parameters": sum(counts.values()), "total_size": sum(sizes.values())},
            "weight_map": {released[name]: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = as_released(name, tensor.to(dtype)).contiguous()
    if not is_finite(cast):
        raise HuggingFaceError(f"{name} holds a value that is not finite in {_plain(dtype)}")
    return cast


def _common_dtype(dtypes: Iterable[torch.dtype]) -> str:
    """What `config.json` says: the type in which transformers will hold the model; the widest where they differ."""
    return _plain(max(dtypes, key=lambda dtype: dtype.itemsize))


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _put_in_place(aside: Path, out: Path) -> None:
    """The old folder goes last, so that a crash leaves one of them whole under some name."""
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}.old")
    if out.exists():
        os.rename(out, old)
    os.rename(aside, out)
    sync(out.parent)
    if old.exists():
        discard(old)
