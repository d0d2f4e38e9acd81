"""The checkpoint section: ranges, and what a URL needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainer.config import check
from trainer.config_cli import problems_of


def problems(tmp_path: Path, **checkpoint: object) -> dict[str, str]:
    path = tmp_path / "trainer.yaml"
    config = {"run_dir": "run", "steps": 2, "batch_tokens": 64, "data": {"paths": ["x"], "sequence_length": 32}}
    path.write_text(yaml.safe_dump({**config, "checkpoint": checkpoint}))
    return {problem["key"]: problem["message"] for problem in check(path)}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ephemeral_interval_steps", -1, "0 (none) or more"),
        ("keep", -1, "0 (every one) or more"),
        ("keep_ephemeral", 0, "at least 1"),
        ("local_keep", 1, "at least 2"),
    ],
)
def test_ranges(tmp_path, key, value, expected):
    assert problems(tmp_path, **{key: value}) == {f"checkpoint.{key}": f"must be {expected}, not {value}"}


def test_a_url_needs_a_disk_to_write_to_first(tmp_path):
    assert "is required where checkpoint.path is a URL" in problems(tmp_path, path="s3://b/r")["checkpoint.local_path"]
    assert problems(tmp_path, path="s3://b/r", local_path="/nvme") == {}
    assert "not a URL" in problems(tmp_path, local_path="s3://b/r")["checkpoint.local_path"]


def test_check_names_a_storage_that_cannot_be_used(tmp_path):
    problems(tmp_path, path="nonsense://b", local_path="/nvme")
    found = {problem["key"]: problem["message"] for problem in problems_of(tmp_path / "trainer.yaml")}
    assert "nonsense://b can't be used" in found["checkpoint.path"]
