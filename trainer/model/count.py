"""How many parameters a model has, counted on the meta device: exact, in milliseconds, without memory."""

from __future__ import annotations

import math

import torch

from trainer.model.config import ModelSpec
from trainer.model.transformer import HybridModel


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name, in the order of the model."""
    with torch.device("meta"):
        model = HybridModel(spec)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count_parameters(spec: ModelSpec) -> int:
    """The total, embedding and head included."""
    return sum(math.prod(shape) for shape in parameter_shapes(spec).values())


def count_by_part(spec: ModelSpec) -> dict[str, int]:
    """Parameters of the embedding, of each kind of sublayer with its norm, of the final norm and of the head."""
    kinds = [[type(sublayer.op).__name__.removesuffix("Spec") for sublayer in block] for block in spec.blocks]
    counts: dict[str, int] = {}
    for name, shape in parameter_shapes(spec).items():
        part = name.split(".")
        key = kinds[int(part[1])][int(part[3])] if part[0] == "blocks" else part[0]
        counts[key] = counts.get(key, 0) + math.prod(shape)
    return counts
