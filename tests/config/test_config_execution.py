"""How blocks are run is checked like everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainer.config import check, load


def write(folder: Path, **changes: object) -> Path:
    path = folder / "trainer.yaml"
    config = {"run_dir": "run", "steps": 1, "batch_tokens": 64, "data": {"paths": ["x"], "sequence_length": 32}}
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path


@pytest.mark.parametrize("compiled", ["auto", "always", "never"])
@pytest.mark.parametrize("recomputed", ["none", "mlp", "block"])
def test_every_choice_is_read(compiled: str, recomputed: str, tmp_path: Path) -> None:
    config = load(write(tmp_path, compile=compiled, activation_checkpointing=recomputed))
    assert (config.compile, config.activation_checkpointing) == (compiled, recomputed)


@pytest.mark.parametrize(("key", "value"), [("compile", "max-autotune"), ("activation_checkpointing", "full")])
def test_another_is_refused_by_its_key(key: str, value: str, tmp_path: Path) -> None:
    assert [problem["key"] for problem in check(write(tmp_path, **{key: value}))] == [key]
