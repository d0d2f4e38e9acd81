"""What a trainer imports on its way to the first step: all of it once, in the standby, and nothing it doesn't need."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import ROOT

SCRIPT = """
import json, sys
from trainer import standby
standby.warm_up()
warm = set(sys.modules)
from trainer.__main__ import main
code = main(["train", "--config", sys.argv[1]])
print(json.dumps({"code": code, "all": sorted(sys.modules), "late": sorted(set(sys.modules) - warm)}))
"""
OPTIONAL = {
    "fsspec",
    "pandas",
    "pytest",
    "ray",
    "scipy",
    "sklearn",
    "tensorboard",
    "tokenizers",
    "transformers",
    "wandb",
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> dict:
    folder = tmp_path_factory.mktemp("start")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(write_config(folder, steps=1))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_fork_of_the_standby_imports_next_to_nothing(imported: dict) -> None:
    """Else each trainer would spend on its own what the standby has spent already."""
    assert imported["code"] == 0
    assert len(imported["late"]) < 20, imported["late"]


def test_what_only_some_runs_need_is_not_imported(imported: dict) -> None:
    assert OPTIONAL.isdisjoint(imported["all"])
