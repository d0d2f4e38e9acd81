"""The weights of a run trained here: which checkpoint, which model, and its parameters by our names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainer.checkpoint.folders import Folder, as_folder
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.reader import Shards, open_shards
from trainer.checkpoint.tiers import open_tier
from trainer.config import ModelConfig, TrainConfig
from trainer.config import load as load_config
from trainer.data.special_ids import KNOWN_EOS, KNOWN_PAD
from trainer.hugging_face.configuration import TextSettings
from trainer.hugging_face.errors import HuggingFaceError
from trainer.model.config import ModelSpec
from trainer.model.count import parameter_shapes
from trainer.model.presets import model_config

_WEIGHTS = "weights."  # of a train state's tensors in a checkpoint
_CONFIGURATION = "trainer.yaml"  # in the folder of a run that the orchestrator started


@dataclass(frozen=True)
class TrainedWeights:
    """A committed checkpoint's parameters."""

    shards: Shards
    spec: ModelSpec
    text: TextSettings

    def __str__(self) -> str:
        return str(self.shards.folder)

    def read(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Full parameters by our names, on the CPU, in the dtype they are trained in.

        Every byte is checked against its digest on the way. Raises CheckpointError.
        """
        shapes = parameter_shapes(self.spec)
        wanted = {_WEIGHTS + name: shapes[name] for name in names}
        found = self.shards.read(dict.fromkeys(wanted), wanted)
        return {name: found[_WEIGHTS + name] for name in names}


def open_trained(source: str | Path, config: TrainConfig | None = None) -> TrainedWeights:
    """The checkpoint `source`, or the newest of a place of checkpoints or of a run; paths and URLs that fsspec knows.

    The model is the one that the checkpoint names, or that of the run's configuration: `config`, or the one in the run's
    folder. An older checkpoint is never taken in place of one that is damaged: which it is would be easy to overlook.

    Raises HuggingFaceError: no checkpoint, no known model, or one that `config` contradicts. CheckpointError: damaged.
    ConfigError: a bad configuration in the run's folder.
    """
    if config is None and (Path(source) / _CONFIGURATION).is_file():
        config = load_config(Path(source) / _CONFIGURATION)
    shards = open_shards(_find(source, config))
    said = shards.meta.model
    if config is not None and said and ModelConfig(**said) != config.model:
        raise HuggingFaceError(f"{shards.folder} holds {ModelConfig(**said)}, the configuration says {config.model}")
    if config is None and not said:
        raise HuggingFaceError(f"{shards.folder} doesn't say what it holds: name the run's configuration with --config")
    spec = spec_of(config.model if config else ModelConfig(**said))
    return TrainedWeights(shards, spec, _text_settings(spec, shards, config))


def spec_of(model: ModelConfig) -> ModelSpec:
    """A configuration's model. Raises HuggingFaceError for one that there isn't."""
    try:
        return model_config(model.name, model.overrides)
    except ValueError as error:
        raise HuggingFaceError(str(error)) from error


def special_ids(vocab_size: int) -> tuple[int | None, int | None]:
    """EOS and PAD of a known vocabulary, else None."""
    return KNOWN_EOS.get(vocab_size), KNOWN_PAD.get(vocab_size)


def _find(source: str | Path, config: TrainConfig | None) -> Folder:
    try:
        folder = as_folder(source)
        if MANIFEST in folder.names():
            return folder
        root = _root(source, config)
        committed = open_tier(root).folders()
    except FileNotFoundError:
        raise HuggingFaceError(f"{source} doesn't exist") from None
    except OSError as error:
        raise HuggingFaceError(f"{source} can't be read: {error.strerror or error}") from error
    if not committed:
        raise HuggingFaceError(f"{root} holds no checkpoint")
    return committed[0]


def _root(source: str | Path, config: TrainConfig | None) -> str | Path:
    """Where the checkpoints of a run's folder are; else `source` is that place."""
    if (Path(source) / "checkpoints").is_dir():
        return Path(source) / "checkpoints"
    if config is not None and config.checkpoint.path and Path(config.run_dir).resolve() == Path(source).resolve():
        return config.checkpoint.path
    return source


def _text_settings(spec: ModelSpec, shards: Shards, config: TrainConfig | None) -> TextSettings:
    eos, pad = special_ids(spec.vocab_size)
    if config is not None:
        eos = config.data.eos_id if config.data.eos_id >= 0 else eos
        pad = config.data.pad_id if config.data.pad_id >= 0 else pad
    length = shards.meta.data.get("sequence_length") or (config.data.sequence_length if config else 0)
    return TextSettings(int(length), eos, pad)
