"""Held-out cross entropy, perplexity and bits per byte, between two steps of training."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import torch

from trainer.config import DataConfig, EvaluationConfig
from trainer.data.dataset import IGNORE_INDEX, document_ids
from trainer.evaluate.sets import HeldOut, open_sets
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel

Results = dict[str, dict[str, float | None]]
_SAY_S = 1.0


@dataclass(frozen=True)
class _Score:
    """Of one window, or of none."""

    nats: float = 0.0  # summed over its targets
    targets: float = 0.0
    bytes: float = 0.0  # of the targets' text


class Evaluator:
    """The sets of a run. All ranks evaluate together; training's random state, data and weights aren't touched.

    A window is one forward pass, whatever the world size, and the scores of single windows are what ranks gather (on the
    host, so that an abort of the gang frees them): so the results are the same bits on every rank, and for every world size
    of which the forward passes are.
    """

    def __init__(self, evaluation: EvaluationConfig, data: DataConfig, vocab_size: int, steps: int) -> None:
        """Opens the sets; raises DataError."""
        self._evaluation = evaluation
        self._steps = steps
        self._sets = open_sets(evaluation, data, vocab_size)

    def due(self, step: int) -> bool:
        """After this step? 0 is before the first."""
        if not self._sets:
            return False
        interval = self._evaluation.interval_steps
        if step == 0:
            return self._evaluation.at_start
        return bool(interval and step % interval == 0) or (step == self._steps and self._evaluation.at_end)

    def run(self, model: ShardedModel, gang: Gang, say: Callable[[], object]) -> Results:
        """Results by set, and by "set/label" where a set has several: cross_entropy (nats a token), perplexity,
        bits_per_byte (None where bytes aren't known) and tokens.

        `say` is called at the start, and then once a second. Raises GangAbortedError, DataError, or what a collective raised.
        """
        results: Results = {}
        beat = _Beat(say)
        for held_out in self._sets:
            scores = _gathered(gang, held_out, self._own_scores(model, gang, held_out, beat))
            results[held_out.name] = _result(scores, held_out)
            names = sorted(set(held_out.labels))
            for name in names if len(names) > 1 else ():
                labelled = [score for score, label in zip(scores, held_out.labels, strict=True) if label == name]
                results[f"{held_out.name}/{name}"] = _result(labelled, held_out)
        model.module.reshard()  # without a backward pass nothing else would
        return results

    @torch.no_grad()
    def _own_scores(self, model: ShardedModel, gang: Gang, held_out: HeldOut, beat: Callable[[], None]) -> list[_Score]:
        """Of windows rank, rank + world, ...: as many on each rank, as each pass is a collective one."""
        layout = gang.layout
        rounds = -(-len(held_out.labels) // layout.world)
        scores = []
        for index in range(layout.rank, rounds * layout.world, layout.world):
            beat()
            gang.check()
            filler = index >= len(held_out.labels)
            score = _score(model, gang.device, held_out, 0 if filler else index)
            scores.append(_Score() if filler else score)
        return scores


class _Beat:
    def __init__(self, say: Callable[[], object]) -> None:
        self._say, self._said = say, -math.inf

    def __call__(self) -> None:
        if time.monotonic() - self._said >= _SAY_S:
            self._say()
            self._said = time.monotonic()


def _score(model: ShardedModel, device: torch.device, held_out: HeldOut, index: int) -> _Score:
    tokens, allowed = held_out.read(index)
    targets = np.full_like(tokens, IGNORE_INDEX)
    targets[:-1] = np.where(allowed[1:], tokens[1:], IGNORE_INDEX)
    nats = model.module.loss(
        torch.from_numpy(tokens[None]).to(device),
        torch.from_numpy(targets[None]).to(device),
        denominator=1.0,
        z_loss=0.0,
        document_ids=torch.from_numpy(document_ids(tokens[None], held_out.eos_id)),
    )
    counted = targets[targets != IGNORE_INDEX]
    size = 0.0 if held_out.token_bytes is None else math.fsum(held_out.token_bytes[counted].tolist())
    return _Score(float(nats), float(len(counted)), size)


def _gathered(gang: Gang, held_out: HeldOut, own: list[_Score]) -> list[_Score]:
    """The scores of all windows, in their order, on every rank. Floats travel as their bits."""
    bits = [struct.unpack("<q", struct.pack("<d", value))[0] for score in own for value in astuple(score)]
    rows = [list(_unpacked(row)) for row in gang.gather(bits)]
    return [rows[i % len(rows)][i // len(rows)] for i in range(len(held_out.labels))]


def _unpacked(bits: list[int]) -> Iterator[_Score]:
    values = [struct.unpack("<d", struct.pack("<q", each))[0] for each in bits]
    for begin in range(0, len(values), 3):
        yield _Score(*values[begin : begin + 3])


def _result(scores: list[_Score], held_out: HeldOut) -> dict[str, float | None]:
    """fsum rounds once, so the order of the sum doesn't matter. EOS counts as a target without bytes."""
    targets = math.fsum(score.targets for score in scores)
    nats = [score.nats for score in scores]
    if not targets or not all(map(math.isfinite, nats)):
        return {"cross_entropy": None, "perplexity": None, "bits_per_byte": None, "tokens": targets}
    total = math.fsum(nats)
    size = math.fsum(score.bytes for score in scores)
    mean = total / targets
    return {
        "cross_entropy": mean,
        "perplexity": math.exp(mean) if mean < 700 else None,  # beyond, a float64 overflows
        "bits_per_byte": total / math.log(2) / size if size else None,
        "tokens": targets,
    }
