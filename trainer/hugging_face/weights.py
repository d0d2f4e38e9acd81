"""A model's parameters in stored tensors of any known spelling, checked whole, read by rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.slices import Slice, parts
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.names import is_olmo_core, olmo_core_names, released_names, respell
from trainer.hugging_face.source import StoredTensor, open_tensors
from trainer.model.config import GatedDeltaNetSpec, ModelSpec
from trainer.model.count import parameter_shapes

_CONVOLUTION = re.compile(r"\.([qkv])_conv1d\.weight$")
_SHOWN_PROBLEMS = 8


@dataclass(frozen=True)
class _Place:
    """Rows [offset, offset + length) of these stored tensors laid end to end."""

    stored: tuple[str, ...]
    offset: int
    shape: tuple[int, ...]


class StoredWeights:
    """The parameters of `spec` in `tensors`, by our names.

    Raises HuggingFaceError: a parameter is missing, unknown, misshapen or there twice. transformers would leave it at its
    random values.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], spec: ModelSpec) -> None:
        self._tensors = {name: tensors[stored] for name, stored in respell(tensors).items()}
        canonical = olmo_core_names(spec) if is_olmo_core(tensors) else released_names(spec)
        shapes = parameter_shapes(spec)
        places = {name: _Place((canonical[name],), 0, shape) for name, shape in shapes.items()}
        for block in _delta_net_blocks(spec):
            places |= _convolution_places(block, canonical, shapes, self._tensors)
        self._places = places
        _check(self._tensors, places)

    @classmethod
    def open(cls, path: Path, spec: ModelSpec) -> StoredWeights:
        """Those of a folder or file. Raises HuggingFaceError, with the path."""
        tensors = open_tensors(path)
        try:
            return cls(tensors, spec)
        except HuggingFaceError as error:
            raise HuggingFaceError(f"{path}: {error}") from error

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[self._places[name].stored[0]].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def read(self, name: str, wanted: Slice | None = None) -> Tensor:
        """Rows of dimension 0 of a parameter (None: all), on the CPU, in the stored dtype.

        Raises HuggingFaceError: unreadable, or a value that isn't finite.
        """
        place = self._places[name]
        wanted = wanted or Slice(0, place.shape[0])
        shape = (wanted.length, *place.shape[1:])
        if not wanted.length:
            return torch.empty(shape, dtype=self.dtype(name))
        holders, begin = {}, 0
        for stored in place.stored:
            length = self._tensors[stored].shape[0]
            holders[Slice(begin, length)] = self._tensors[stored]
            begin += length
        found = [
            holders[holder].rows(rows.offset, rows.end)
            for rows, holder in parts(Slice(place.offset + wanted.offset, wanted.length), holders)
        ]
        values = (found[0] if len(found) == 1 else torch.cat(found)).reshape(shape)
        if not is_finite(values):
            raise HuggingFaceError(f"{place.stored[0]} holds a value that is not finite")
        return values


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is; in no memory, as NaN and infinities show in the extremes. The tensor isn't empty."""
    return all(extreme.isfinite().item() for extreme in tensor.aminmax())


def as_released(name: str, tensor: Tensor) -> Tensor:
    """A parameter of released name `name` in its shape on disk: a convolution's [C, W] is [C, 1, W] there."""
    return tensor.unsqueeze(1) if _CONVOLUTION.search(name) else tensor


def _delta_net_blocks(spec: ModelSpec) -> list[int]:
    return [index for index, block in enumerate(spec.blocks) if isinstance(block[0].op, GatedDeltaNetSpec)]


def _convolution_places(
    block: int, canonical: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor]
) -> dict[str, _Place]:
    """q, k and v lie one after another: in one fused tensor, or in three, wherever those are cut.

    save_pretrained of transformers 5.23 cuts three equal ones, whatever the widths of q, k and v.
    """
    ours = [f"blocks.{block}.sublayers.0.op.{letter}_conv.weight" for letter in "qkv"]
    fused = _CONVOLUTION.sub(".conv1d.weight", canonical[ours[0]])
    stored = (fused,) if fused in tensors else tuple(canonical[name] for name in ours)
    places, offset = {}, 0
    for name in ours:
        places[name] = _Place(stored, offset, shapes[name])
        offset += shapes[name][0]
    return places


def _check(tensors: Mapping[str, StoredTensor], places: Mapping[str, _Place]) -> None:
    expected: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for place in places.values():
        expected.setdefault(place.stored, []).append(place.shape)
    known = {name for stored in expected for name in stored}
    problems = [f"missing {name}" for stored in expected for name in stored if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in known]
    for stored, shapes in expected.items():
        if all(name in tensors for name in stored):
            problems += _misshapen(stored, [tensors[name].shape for name in stored], shapes)
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        text = "; ".join(problems[:_SHOWN_PROBLEMS]) + (f" and {more} more" if more > 0 else "")
        raise HuggingFaceError(f"the weights do not fit the model: {text}")


def _misshapen(stored: tuple[str, ...], found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the shapes of stored tensors that hold parameters of the shapes `expected`, end to end."""
    is_convolution = "conv1d" in stored[0]
    flat = [(s[0], s[2]) if is_convolution and len(s) == 3 and s[1] == 1 else s for s in found]
    rows = sum(shape[0] for shape in expected)
    if len(stored) < len(expected):
        allowed = [[(rows, *expected[0][1:])]]
    else:
        allowed = [expected]
        if is_convolution:
            allowed.append([(rows // len(stored), *expected[0][1:])] * len(stored))
    if flat not in allowed:
        for name, shape, wanted in zip(stored, found, allowed[0], strict=True):
            yield f"{name} has shape {list(shape)}, the model {list(wanted)}"
