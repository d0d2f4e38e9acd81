"""A model with its weights in place, from a Hugging Face folder or from a run trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer.hugging_face.configuration import CONFIG, TextSettings, from_config, read_json, text_settings
from trainer.hugging_face.folder import Read
from trainer.hugging_face.trained import open_trained
from trainer.hugging_face.weights import StoredWeights
from trainer.model.config import ModelSpec
from trainer.model.transformer import HybridModel


def load_model(where: str, device: torch.device, dtype: torch.dtype) -> tuple[HybridModel, TextSettings]:
    """The model of a folder with a `config.json`, or of a run's folder or checkpoint, one parameter at a time.

    Raises HuggingFaceError, CheckpointError, ConfigError.
    """
    spec, text, read = _open(where)
    with torch.device("meta"):
        model = HybridModel(spec).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read([name])[name])
    return model.requires_grad_(False), text


def read_all(weights: StoredWeights) -> Read:
    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        return {name: weights.read(name) for name in names}

    return read


def _open(where: str) -> tuple[ModelSpec, TextSettings, Read]:
    folder = Path(where)
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        spec = from_config(config)
        return spec, text_settings(config), read_all(StoredWeights.open(folder, spec))
    trained = open_trained(where)
    return trained.spec, trained.text, trained.read
