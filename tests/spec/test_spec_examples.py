"""The examples are valid, by the trainer's own check, once their data are there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.spec.errors import SpecErrors
from orchestrator.spec.load import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_tested_here():
    assert {p.name for p in EXAMPLES.glob("*.yaml")} == {
        "tiny-hybrid.yaml",
        "olmo-hybrid-7b.yaml",
        "torchrun-command.yaml",
    }


def test_the_tiny_one_with_the_data_that_its_first_lines_make(tmp_path):
    example = EXAMPLES / "tiny-hybrid.yaml"
    command = next(line for line in example.read_text().splitlines() if "data prepare" in line).split()
    arguments = command[command.index("data") :]
    assert arguments[-2:] == ["--out", "examples/data"]
    argv = [sys.executable, "-m", "trainer", *arguments[:-1], str(tmp_path / "data")]
    subprocess.run(argv, check=True, capture_output=True)
    spec = load_spec(shutil.copy(example, tmp_path))
    assert spec.plan().world_size == 4


def test_the_tiny_one_without_its_data_says_which_are_missing(tmp_path):
    with pytest.raises(SpecErrors) as caught:
        load_spec(shutil.copy(EXAMPLES / "tiny-hybrid.yaml", tmp_path))
    (error,) = caught.value.errors
    assert "paths: [data]" in error.source
    assert str(tmp_path / "data") in error.message


def test_the_7b_has_the_published_recipes_numbers(tmp_path):
    with open(tmp_path / "tokens.npy", "wb") as tokens:
        tokens.truncate(512 * 8192 * 4)  # one batch of uint32, sparse
    (tmp_path / "mix.txt").write_text(f"all,{tmp_path / 'tokens.npy'}\n")
    text = (EXAMPLES / "olmo-hybrid-7b.yaml").read_text()
    (tmp_path / "run.yaml").write_text(text.replace("/data/olmo-mix/mix.txt", "mix.txt"))
    spec = load_spec(tmp_path / "run.yaml")
    plan = spec.plan()
    assert (plan.nodes, plan.world_size, plan.replicas, plan.shards) == (64, 512, 4, 128)
    config = spec.trainer_config("/runs/x")
    assert config["batch_tokens"] == 4_194_304
    assert config["batch_tokens"] // config["data"]["sequence_length"] == plan.world_size
    assert config["optimizer"]["lr"] == 3e-4


def test_the_torchrun_command():
    spec = load_spec(EXAMPLES / "torchrun-command.yaml")
    assert not spec.plan().speaks_protocol
    assert spec.public()["env"]["HF_TOKEN"] == "(hidden)"
