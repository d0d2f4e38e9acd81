"""What the configuration refuses of schedules and of skipped steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainer.config import check, load

VALID = {"run_dir": "r", "steps": 100, "batch_tokens": 256, "data": {"paths": ["t.npy"], "sequence_length": 32}}


def written(folder: Path, optimizer: dict) -> Path:
    path = folder / "trainer.yaml"
    path.write_text(yaml.safe_dump({**VALID, "optimizer": optimizer}))
    return path


@pytest.mark.parametrize(
    ("optimizer", "key", "said"),
    [
        ({"schedule": "cosign"}, "schedule", "one of cosine, linear, wsd, constant"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_ratio", "either warmup_steps or warmup_ratio"),
        ({"warmup_ratio": 1.5}, "warmup_ratio", "from 0 to 1"),
        ({"schedule": "wsd"}, "decay_steps", "wsd needs it"),
        ({"schedule": "wsd", "decay_steps": -1}, "decay_steps", "0 or more"),
        ({"schedule": "wsd", "decay_steps": 60, "warmup_steps": 50}, "decay_steps", "exceed all 100"),
        ({"schedule": "wsd", "decay_steps": 95, "warmup_ratio": 0.1}, "decay_steps", "10 steps of warm-up"),
        ({"schedule": "linear", "decay_steps": 10}, "decay_steps", "belongs to schedule wsd, not linear"),
        ({"outlier_sigma": -1.0}, "outlier_sigma", "0 (off) or more"),
        ({"outlier_sigma": float("nan")}, "outlier_sigma", "0 (off) or more"),
        ({"max_skipped_in_row": -1}, "max_skipped_in_row", "0 (no end) or more"),
    ],
)
def test_refused(optimizer: dict, key: str, said: str, tmp_path: Path) -> None:
    problems = check(written(tmp_path, optimizer))
    assert [problem["key"] for problem in problems] == [f"optimizer.{key}"]
    assert said in problems[0]["message"]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"schedule": "wsd", "decay_steps": 50, "warmup_steps": 50, "final_lr_ratio": 0},
        {"schedule": "linear", "warmup_ratio": 0.03},
        {"schedule": "constant", "outlier_sigma": 0, "max_skipped_in_row": 0},
        {"warmup_steps": 2000},
    ],
)
def test_allowed(optimizer: dict, tmp_path: Path) -> None:
    path = written(tmp_path, optimizer)
    assert check(path) == []
    assert load(path).optimizer.schedule == optimizer.get("schedule", "cosine")
