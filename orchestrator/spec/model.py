"""The run spec: what a user asks for. Strict: no value is silently turned into another type.

`load.py` adds what a schema can't say: positions, shapes, and the trainer's own check of its section.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from orchestrator.files import write_atomic
from orchestrator.recovery.events import RunPlan
from orchestrator.spec.document import dump
from orchestrator.spec.secrets import redacted

TRAINER_FILE = "trainer.yaml"  # docs/worker-protocol.md, "Files of a run"
# Fields of the trainer's sections that name files.
_PATHS = {
    "data": ("paths", "mix", "mix_base", "label_masks", "work_dir"),
    "checkpoint": ("path", "local_path"),
}

Count = Annotated[int, Field(ge=1, le=1_000_000)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MeshSpec(_Section):
    """HSDP: `shards` ranks hold the whole state together, `replicas` times over."""

    replicas: Count
    shards: Count


class WorkloadSpec(_Section):
    """Exactly one of `trainer` (the built-in trainer's keys, without run_dir) and `command` (any torchrun command)."""

    trainer: dict[str, Any] | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None
    speaks_protocol: bool = False  # of a command: it speaks the worker protocol and can be recovered in place


class RunSpec(_Section):
    """A checked run spec. `mesh` is by default one replica a node, sharded over the ranks of the node."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]
    nodes: Count
    ranks_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    mesh: MeshSpec | None = None
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    max_recoveries: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    work: Annotated[WorkloadSpec, Field(alias="workload")]
    env: dict[EnvName, str] = Field(default_factory=dict, repr=False)
    _folder: Path = PrivateAttr(default_factory=Path.cwd)  # of the spec file: relative paths start here

    @property
    def replicas(self) -> int:
        return self.mesh.replicas if self.mesh else self.nodes

    @property
    def shards(self) -> int:
        return self.mesh.shards if self.mesh else self.ranks_per_node

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def speaks_protocol(self) -> bool:
        return self.work.trainer is not None or self.work.speaks_protocol

    def plan(self) -> RunPlan:
        """What the core needs to know of the run."""
        return RunPlan(
            nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            replicas=self.replicas,
            shards=self.shards,
            priority=self.priority,
            speaks_protocol=self.speaks_protocol,
            max_recoveries=self.max_recoveries,
        )

    def trainer_config(self, run_dir: Path | str) -> dict[str, Any] | None:
        """The contents of RUN_DIR/trainer.yaml: the trainer section with absolute paths; None for a command."""
        if self.work.trainer is None:
            return None
        config = {**self.work.trainer, "run_dir": str(run_dir)}
        for section, keys in _PATHS.items():
            if isinstance(config.get(section), dict):
                config[section] = self._with_paths(config[section], keys)
        if isinstance(config.get("evaluation"), dict):
            config["evaluation"] = self._evaluation_with_paths(config["evaluation"])
        if config.get("init_from"):
            config["init_from"] = self._resolved(config["init_from"])
        return config

    def workload(self, run_dir: Path | str) -> dict[str, Any]:
        """How nodes launch the run: {"run_dir", "argv", "command", "env", "protocol"}.

        One of `argv` and `command` is empty: `argv` is the built-in trainer's command line, which a standby forks,
        `command` any other program's. Holds secrets: for nodes only, over the authenticated link.
        """
        built_in = self.work.command is None
        return {
            "run_dir": str(run_dir),
            "argv": ["train", "--config", str(Path(run_dir) / TRAINER_FILE)] if built_in else [],
            "command": [self._existing(word) for word in self.work.command or ()],
            "env": dict(self.env),
            "protocol": self.speaks_protocol,
        }

    def write_files(self, run_dir: Path) -> None:
        """Write RUN_DIR/trainer.yaml (nothing for a command). Raises OSError."""
        config = self.trainer_config(run_dir)
        if config is None:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(run_dir / TRAINER_FILE, dump(config))

    def public(self) -> dict[str, Any]:
        """The spec as plain values, secrets hidden: may be journaled and shown."""
        return {**self.model_dump(exclude_none=True, by_alias=True), "env": redacted(self.env)}

    def _with_paths(self, holder: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        return {**holder, **{key: self._resolved(holder[key]) for key in keys if holder.get(key)}}

    def _evaluation_with_paths(self, section: dict[str, Any]) -> dict[str, Any]:
        """Its tokenizer may be the word byte; its sets are a list."""
        found = self._with_paths(section, () if section.get("tokenizer") == "byte" else ("tokenizer",))
        if isinstance(found.get("sets"), list):
            keys = ("paths", "mix", "texts")
            found["sets"] = [self._with_paths(each, keys) if isinstance(each, dict) else each for each in found["sets"]]
        return found

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._resolved(v) for v in value]
        if not isinstance(value, str) or "://" in value:
            return value
        return os.path.normpath(self._folder / value)

    def _existing(self, word: str) -> str:
        """A word of a command that names a file beside the spec becomes absolute: ranks run in another folder."""
        return self._resolved(word) if word and (self._folder / word).is_file() else word
