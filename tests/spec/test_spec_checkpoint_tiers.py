"""Checkpoint tiers in a spec: relative folders begin at the spec's own, URLs stay as they are."""

import pytest

from orchestrator.spec.load import parse_spec

SPEC = """
name: t
nodes: 1
ranks_per_node: 1
workload:
  trainer:
    steps: 2
    batch_tokens: 64
    data: {paths: [x]}
    checkpoint: {path: "PLACE", local_path: nvme}
"""


@pytest.mark.parametrize(
    ("place", "expected"),
    [("ckpt", "/specs/ckpt"), ("/shared/ckpt", "/shared/ckpt"), ("s3://bucket/run", "s3://bucket/run")],
)
def test_places_in_the_trainers_file(place, expected):
    config = parse_spec(SPEC.replace("PLACE", place), "/specs/run.yaml", check=None).trainer_config("/runs/t")
    assert config["checkpoint"] == {"path": expected, "local_path": "/specs/nvme"}
