"""Held-out scores: what they are by definition, the same whatever the cut, and what can't be evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import DataConfig, EvaluationConfig, EvaluationSet
from trainer.data.errors import DataError, SourceError, SourceNotFoundError
from trainer.evaluate.evaluator import Evaluator
from trainer.evaluate.sets import open_sets
from trainer.parallel.gang import Gang, GangAbortedError
from trainer.parallel.layout import Layout
from trainer.parallel.sharded import ShardedModel

T = 8
DATA = DataConfig(paths=["unused"], sequence_length=T)
STEPS = 10


class Uniform(nn.Module):
    """Gives each target the nats of its token id's parity: 1 for even, 2 for odd."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.weight = nn.Parameter(torch.empty(2, 2))

    def forward(self, targets: Tensor) -> Tensor:
        counted = targets[targets != -100]
        return (1.0 + counted % 2).sum()

    def loss(self, tokens: Tensor, targets: Tensor, denominator: float, z_loss: float, document_ids: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert (denominator, z_loss) == (1.0, 0.0)
        assert tokens.shape == targets.shape == document_ids.shape == (1, T)
        return self(targets)


@pytest.fixture
def gang() -> Iterator[Gang]:
    alone = Gang(1, Layout(0, 1, 1), torch.device("cpu"), dist.HashStore)
    alone.form()
    yield alone
    alone.close()


def evaluator(sets: list[EvaluationSet], data: DataConfig = DATA, vocab: int = 258, **config) -> Evaluator:
    return Evaluator(EvaluationConfig(sets=sets, **config), data, vocab, STEPS)


def scores(gang: Gang, *sets: EvaluationSet, **config) -> dict:
    return evaluator(list(sets), **config).run(ShardedModel(Uniform, gang), gang, lambda: None)


def write_jsonl(path: Path, *documents: tuple[str, str]) -> EvaluationSet:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in documents))
    return EvaluationSet(name=path.stem, texts=[str(path)])


def nats(tokens: list[int]) -> float:
    return sum(1.0 + token % 2 for token in tokens)


def test_texts_are_scored_by_label_and_together(gang, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", ("abcdefghij", "web"), ("xyz", "code"), ("äb", "web"))
    found = scores(gang, held_out)
    assert set(found) == {"held", "held/web", "held/code"}
    code = [*b"yz", 256]  # the first token has nothing before it
    web = [*b"abcdefghij", 256, *"äb".encode(), 256]
    web_targets = [token for at, token in enumerate(web) if at % T]
    assert found["held/code"]["tokens"] == 3
    assert found["held/code"]["cross_entropy"] == pytest.approx(nats(code) / 3)
    assert found["held/web"]["cross_entropy"] == pytest.approx(nats(web_targets) / len(web_targets))
    both = (nats(code) + nats(web_targets)) / (3 + len(web_targets))
    assert found["held"]["cross_entropy"] == pytest.approx(both)
    assert found["held"]["perplexity"] == pytest.approx(math.exp(both))
    assert found["held/code"]["bits_per_byte"] == pytest.approx(nats(code) / math.log(2) / 2)


def test_token_files_are_cut_as_in_training(gang, tmp_path):
    np.arange(3 * T + 5, dtype="<u2").tofile(tmp_path / "part.npy")
    found = scores(gang, EvaluationSet(name="files", paths=[str(tmp_path)], bytes_per_token=4.0))
    targets = [token for token in range(3 * T) if token % T]
    assert found["files"]["tokens"] == len(targets)
    assert found["files"]["cross_entropy"] == pytest.approx(nats(targets) / len(targets))
    assert found["files"]["bits_per_byte"] == pytest.approx(nats(targets) / math.log(2) / 4 / len(targets))


def test_a_mix_is_scored_by_its_labels(gang, tmp_path):
    for name in ("a", "b"):
        np.full(2 * T, ord(name), dtype="<u2").tofile(tmp_path / f"{name}.npy")
    (tmp_path / "mix.txt").write_text("even,b.npy\nodd,a.npy\n")
    found = scores(gang, EvaluationSet(name="mix", mix=str(tmp_path / "mix.txt")))
    assert (found["mix/even"]["cross_entropy"], found["mix/odd"]["cross_entropy"]) == (1.0, 2.0)
    assert found["mix"]["cross_entropy"] == 1.5


def test_a_limit_takes_windows_from_the_whole_set(gang, tmp_path):
    np.repeat(np.arange(10), T).astype("<u2").tofile(tmp_path / "part.npy")
    held_out = EvaluationSet(name="some", paths=[str(tmp_path)], max_sequences=5)
    opened = open_sets(EvaluationConfig(sets=[held_out]), DATA, 258)[0]
    assert [int(opened.read(i)[0][0]) for i in range(len(opened.labels))] == [0, 2, 4, 6, 8]


def test_without_a_tokenizer_there_are_no_bytes(gang, tmp_path):
    np.arange(T, dtype="<u2").tofile(tmp_path / "part.npy")
    found = scores(gang, EvaluationSet(name="files", paths=[str(tmp_path)]), vocab=50000)
    assert found["files"]["bits_per_byte"] is None
    assert found["files"]["cross_entropy"] is not None


def test_a_score_that_is_not_finite_is_none(gang, tmp_path, monkeypatch):
    monkeypatch.setattr(Uniform, "forward", lambda self, targets: torch.tensor(float("nan")))
    found = scores(gang, write_jsonl(tmp_path / "held.jsonl", ("abc", "")))
    assert found["held"]["cross_entropy"] is found["held"]["perplexity"] is found["held"]["bits_per_byte"] is None


def test_the_random_state_is_left_alone(gang, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", ("abcdefghijklmnop", ""))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    scores(gang, held_out)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_aborted_gang_ends_it(gang, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", ("abcdefghijklmnop" * 4, ""))
    said: list[int] = []

    def say() -> None:
        said.append(1)
        gang.abort("told to")

    with pytest.raises(GangAbortedError, match="told to"):
        evaluator([held_out]).run(ShardedModel(Uniform, gang), gang, say)
    assert said == [1]


@pytest.mark.parametrize(
    ("config", "due"),
    [
        ({}, [STEPS]),
        ({"interval_steps": 4}, [4, 8, STEPS]),
        ({"interval_steps": 5, "at_start": True}, [0, 5, STEPS]),
        ({"at_end": False, "at_start": True}, [0]),
    ],
)
def test_when_it_is_due(tmp_path, config, due):
    held_out = write_jsonl(tmp_path / "held.jsonl", ("abc", ""))
    assert [step for step in range(STEPS + 1) if evaluator([held_out], **config).due(step)] == due
    assert not any(evaluator([], **config).due(step) for step in range(STEPS + 1))


@pytest.mark.parametrize(
    ("text", "vocab", "config", "error", "message"),
    [
        (None, 258, {}, SourceNotFoundError, "evaluation set held: text file .* doesn't exist"),
        ('{"text": 3}', 258, {}, SourceError, "evaluation set held: .*line 1"),
        ('{"text": "a", "label": 3}', 258, {}, SourceError, "label 3 is no text"),
        ("", 258, {}, DataError, "no text in"),
        ('{"text": "a"}', 50000, {}, DataError, r"set evaluation\.tokenizer"),
        ('{"text": "a"}', 100, {"tokenizer": "byte"}, DataError, "has 258 tokens, the model only 100"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_the_start(tmp_path, text, vocab, config, error, message):
    path = tmp_path / "held.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        evaluator([EvaluationSet(name="held", texts=[str(path)])], vocab=vocab, **config)
