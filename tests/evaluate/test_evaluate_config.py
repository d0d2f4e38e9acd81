"""What `trainer check` says of the sections evaluation and log."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from trainer import config_cli


@pytest.fixture
def problems(tmp_path, capsys):
    np.zeros(64 * 16, dtype="<u2").tofile(tmp_path / "part-000.npy")
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "abc"}) + "\n")

    def ask(**changes) -> list[tuple[str, str]]:
        data = {"paths": [str(tmp_path / "part-000.npy")], "sequence_length": 64}
        value = {"run_dir": str(tmp_path), "steps": 2, "batch_tokens": 512, "data": data, **changes}
        (tmp_path / "trainer.yaml").write_text(yaml.safe_dump(value))
        config_cli.main([str(tmp_path / "trainer.yaml"), "--json"])
        return [(each["key"], each["message"]) for each in json.loads(capsys.readouterr().out)]

    return ask


def test_a_good_one(problems, tmp_path):
    sets = [{"name": "a", "texts": [str(tmp_path / "held.jsonl")]}, {"name": "b", "paths": [str(tmp_path)]}]
    log = {"tensorboard": True, "wandb": {"project": "p", "mode": "offline"}}
    assert problems(evaluation={"sets": sets, "interval_steps": 10}, log=log) == []


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"evaluation": {"interval_steps": -1}}, "evaluation.interval_steps", "must be 0 or more"),
        ({"evaluation": {"sets": [{"name": "a"}]}}, "evaluation.sets[0]", "give one of paths, mix and texts"),
        ({"evaluation": {"sets": [{"paths": ["x"]}]}}, "evaluation.sets[0].name", "is required"),
        (
            {"evaluation": {"sets": [{"name": "a", "paths": ["x"]}, {"name": "a", "paths": ["x"]}]}},
            "evaluation.sets[1].name",
            "differ from the others",
        ),
        (
            {"evaluation": {"sets": [{"name": "a", "paths": ["x"], "kind": "qa"}]}},
            "evaluation.sets[0].kind",
            "must be perplexity",
        ),
        (
            {"evaluation": {"sets": [{"name": "a", "paths": ["x"], "bytes_per_token": -1.0}]}},
            "evaluation.sets[0].bytes_per_token",
            "must be 0",
        ),
        (
            {"evaluation": {"sets": [{"name": "a", "texts": ["/absent.jsonl"]}]}},
            "evaluation",
            "evaluation set a: text file /absent.jsonl doesn't exist",
        ),
        ({"log": {"wandb": {"mode": "on"}}}, "log.wandb.mode", "online, offline or disabled"),
        ({"log": {"wandb": {"api_key": "x"}}}, "log.wandb.api_key", "unknown key"),
    ],
)
def test_problems_are_listed_with_their_key(problems, changes, key, message):
    found = problems(**changes)
    assert [each for each, _ in found] == [key]
    assert message in found[0][1]
