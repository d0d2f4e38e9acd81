"""The weights that a run begins with: drawn from its seed, or those of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.checkpoint.slices import Slice
from trainer.config import TrainConfig
from trainer.config_parse import ConfigError
from trainer.hugging_face.configuration import check_config
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.weights import StoredWeights
from trainer.parallel.sharded import ShardedModel


def initialize(model: ShardedModel, config: TrainConfig) -> dict[str, str]:
    """Fill the model; whence, for the phase message.

    From a folder each rank reads its own rows alone. Raises ConfigError when the folder doesn't fit the model: a
    parameter is missing, unknown, misshapen or not finite, or its config.json says otherwise.
    """
    if not config.init_from:
        model.module.init_weights(config.seed)
        return {"source": "init"}
    try:
        _fill(model, Path(config.init_from), tuple(config.init_changes))
    except HuggingFaceError as error:
        raise ConfigError("init_from", str(error)) from error
    return {"source": "init", "detail": config.init_from}


@torch.no_grad()
def _fill(model: ShardedModel, folder: Path, changes: tuple[str, ...]) -> None:
    spec = model.module.spec
    check_config(folder, spec, changes)
    weights = StoredWeights.open(folder, spec)
    pieces = model.pieces()
    for name, shard in model.shards.items():
        shard.copy_(weights.read(name, Slice(pieces[name].offset, len(shard))))
