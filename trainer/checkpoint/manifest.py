"""The two JSON documents of a checkpoint: a sidecar for each shard, and the manifest over all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from trainer.checkpoint.digest import json_digest
from trainer.checkpoint.errors import CheckpointDamagedError

FORMAT = 1
MANIFEST = "manifest.json"
_Document = TypeVar("_Document")
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointMeta:
    """What a resumed run needs beside tensors. All values must be JSON; one that isn't finite is refused at save.

    position: batches done, so the index of the next global batch. tokens: trained so far. seed: of the weights. data:
    TokenDataset.fingerprint(). statistics: of guard and optimizer. rng: generator states, hex or base64, by name. mesh:
    {"replicas", "shards"}.
    """

    position: int
    tokens: int
    seed: int
    data: dict = field(default_factory=dict)
    statistics: dict = field(default_factory=dict)
    rng: dict[str, str] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredTensor:
    """Rows [offset, offset + length) of dimension 0 of a tensor of this global shape; dtype as in "bfloat16"."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    length: int


@dataclass(frozen=True)
class Sidecar:
    """What the writer of one shard vouches for."""

    step: int
    attempt: int
    shard: int
    shards: int
    file: str
    bytes: int
    sha256: str
    tensors: dict[str, StoredTensor]

    def to_json(self) -> dict:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict) -> Sidecar:
        """Raises KeyError, TypeError or ValueError for anything but a sidecar of this format."""
        fields = _fields(value)
        fields["tensors"] = {
            name: StoredTensor(tuple(t["shape"]), t["dtype"], t["offset"], t["length"])
            for name, t in fields["tensors"].items()
        }
        return cls(**fields)


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint: its meta, and size and SHA-256 of every other file. `digest` is over all of this."""

    step: int
    attempt: int
    shards: int
    meta: CheckpointMeta
    torch: str
    files: dict[str, dict]  # name -> {"bytes": int, "sha256": str}

    @property
    def digest(self) -> str:
        return json_digest(self._body())

    def _body(self) -> dict:
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> dict:
        return {**self._body(), "sha256": self.digest}

    @classmethod
    def from_json(cls, value: dict) -> Manifest:
        """Raises KeyError, TypeError or ValueError for a wrong format or digest."""
        body = dict(value)
        digest = body.pop("sha256")
        if digest != json_digest(body):
            raise ValueError("its own digest doesn't match")
        fields = _fields(body)
        return cls(**{**fields, "meta": CheckpointMeta(**fields["meta"])})


def _fields(value: dict) -> dict:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']}, this version reads {FORMAT}")
    return {name: item for name, item in value.items() if name != "format"}


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Step of a committed checkpoint's folder; None for any other name."""
    found = _STEP.fullmatch(path.name)
    return int(found.group(1)) if found else None


def shard_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.safetensors"


def sidecar_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.json"


def read_manifest(path: Path) -> Manifest:
    """The manifest of checkpoint folder `path`, its own digest checked. Raises CheckpointDamagedError."""
    return _parse(path, MANIFEST, Manifest.from_json)


def read_sidecar(path: Path, shard: int, shards: int) -> Sidecar:
    """Raises CheckpointDamagedError."""
    return _parse(path, sidecar_file(shard, shards), Sidecar.from_json)


def _parse(path: Path, name: str, build: Callable[[dict], _Document]) -> _Document:
    try:
        return build(json.loads((path / name).read_bytes()))
    except OSError as error:
        raise CheckpointDamagedError(path, f"{name} can't be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(path, f"{name} is damaged: {error}") from error
