"""The JSON documents of a checkpoint: a sidecar for each shard, and the manifest over all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from trainer.checkpoint.digest import bytes_digest, json_digest, tree_digest
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointFormatError
from trainer.checkpoint.folders import AnyFolder, Folder, as_folder

FORMAT = 2
PERMANENT, EPHEMERAL = "permanent", "ephemeral"
MANIFEST = "manifest.json"
_Document = TypeVar("_Document")
_STEP = re.compile(r"step-(\d{8,})(?:\.attempt-\d+)?")  # in an object store, where nothing is renamed, with the attempt


@dataclass(frozen=True)
class CheckpointMeta:
    """What a resumed run needs beside tensors. All values must be JSON; one that isn't finite is refused at save.

    position: batches done, so the index of the next global batch. tokens: trained so far. seed: of the weights. data:
    TokenDataset.fingerprint(). statistics: of guard and optimizer. rng: generator states, hex or base64, by name. mesh:
    {"replicas", "shards"}. kind: PERMANENT, or EPHEMERAL, which retention removes. model: {"name", "overrides"}, as
    trainer.model.presets.model_config takes them. config_sha256: json_digest of the trainer's configuration.
    """

    position: int
    tokens: int
    seed: int
    data: dict = field(default_factory=dict)
    statistics: dict = field(default_factory=dict)
    rng: dict[str, str] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=dict)
    kind: str = PERMANENT
    model: dict = field(default_factory=dict)
    config_sha256: str = ""


@dataclass(frozen=True)
class StoredTensor:
    """Rows [offset, offset + length) of dimension 0 of a tensor of this global shape; dtype as in "bfloat16".

    begin: byte of the shard's file at which the rows begin, in C order.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    length: int
    begin: int = 0


@dataclass(frozen=True)
class Sidecar:
    """What the writer of one shard vouches for. blocks: SHA-256 of each `block_bytes` of its file, the last one shorter."""

    step: int
    attempt: int
    shard: int
    shards: int
    file: str
    bytes: int
    block_bytes: int
    blocks: tuple[str, ...]
    tensors: dict[str, StoredTensor]

    @property
    def digest(self) -> str:
        """Of the shard's file."""
        return tree_digest(self.blocks)

    def to_json(self) -> dict:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict) -> Sidecar:
        """Raises KeyError, TypeError or ValueError for anything but a sidecar of this format."""
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}, this version reads {FORMAT}")
        fields = _without_format(value)
        fields["tensors"] = {
            name: StoredTensor(tuple(t["shape"]), t["dtype"], t["offset"], t["length"], t["begin"])
            for name, t in fields["tensors"].items()
        }
        if len(fields["blocks"]) != -(-fields["bytes"] // fields["block_bytes"]):
            raise ValueError("its blocks don't make its file")
        return cls(**{**fields, "blocks": tuple(fields["blocks"])})


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint: its meta, and size and digest of every other file. `digest` is over all of this.

    files: of a sidecar {"bytes", "sha256"}, of a shard's file {"bytes", "tree_sha256"} (see `tree_digest`).
    """

    step: int
    attempt: int
    shards: int
    meta: CheckpointMeta
    torch: str
    files: dict[str, dict]

    @property
    def stored_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(said["bytes"] for said in self.files.values())

    @property
    def digest(self) -> str:
        return json_digest(self._body())

    def _body(self) -> dict:
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> dict:
        return {**self._body(), "sha256": self.digest}

    @classmethod
    def from_json(cls, value: dict) -> Manifest:
        """Raises KeyError, TypeError or ValueError for a wrong digest, CheckpointFormatError for another format."""
        body = dict(value)
        digest = body.pop("sha256")
        if digest != json_digest(body):
            raise ValueError("its own digest doesn't match")
        if body["format"] != FORMAT:
            raise CheckpointFormatError(
                f"a checkpoint of step {body.get('step')} has format {body['format']}, this version of Holdfast reads "
                f"{FORMAT}: go on with the version that wrote it, or use another checkpoint.path"
            )
        fields = _without_format(body)
        return cls(**{**fields, "meta": CheckpointMeta(**fields["meta"])})


def _without_format(value: dict) -> dict:
    return {name: item for name, item in value.items() if name != "format"}


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: AnyFolder) -> int | None:
    """Step of a checkpoint's folder, by its name; None for any other name."""
    found = _STEP.fullmatch(as_folder(path).name)
    return int(found.group(1)) if found else None


def shard_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.safetensors"


def sidecar_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.json"


def read_manifest(path: AnyFolder, name: str = MANIFEST) -> Manifest:
    """The manifest of a checkpoint's folder, its own digest checked.

    Raises CheckpointDamagedError, and CheckpointFormatError for one that another version of Holdfast wrote.
    """
    folder = as_folder(path)
    return _parse(folder, name, _read(folder, name), Manifest.from_json)


def read_sidecar(path: AnyFolder, shard: int, manifest: Manifest) -> Sidecar:
    """A shard's sidecar, checked against the manifest. Raises CheckpointDamagedError."""
    folder, name, file = as_folder(path), sidecar_file(shard, manifest.shards), shard_file(shard, manifest.shards)
    for needed in (file, name):
        if needed not in manifest.files:
            raise CheckpointDamagedError(path, f"the manifest doesn't know {needed}")
    content, said, of_file = _read(folder, name), manifest.files[name], manifest.files[file]
    if len(content) != said["bytes"]:
        raise CheckpointDamagedError(path, f"{name} has {len(content)} bytes instead of {said['bytes']}")
    if bytes_digest(content) != said["sha256"]:
        raise CheckpointDamagedError(path, f"{name} has another digest than when it was written")
    sidecar = _parse(folder, name, content, Sidecar.from_json)
    if (sidecar.file, sidecar.bytes, sidecar.digest) != (file, of_file["bytes"], of_file["tree_sha256"]):
        raise CheckpointDamagedError(path, f"{name} and the manifest disagree on {file}")
    return sidecar


def parse_sidecar(path: AnyFolder, name: str) -> Sidecar:
    """A sidecar before there is a manifest. Raises CheckpointDamagedError."""
    folder = as_folder(path)
    return _parse(folder, name, _read(folder, name), Sidecar.from_json)


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise CheckpointDamagedError(folder, f"{name} can't be read: {error.strerror or error}") from error


def _parse(folder: Folder, name: str, content: bytes, build: Callable[[dict], _Document]) -> _Document:
    try:
        return build(json.loads(content))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(folder, f"{name} is damaged: {error}") from error
