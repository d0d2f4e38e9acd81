"""The state's maps are in the order of their hashes; what the API says must not be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from msgspec.structs import replace
from starlette.testclient import TestClient
from api_fake_service import FakeService
from orchestrator.api.app import create_app
service = FakeService()
state = service.the_state
runs, nodes = state.runs, state.nodes
for letter in "abcdefgh":
    runs = runs.set(letter, replace(runs["later"], run=letter))
    nodes = nodes.set(letter, replace(nodes["node-1"], node=letter))
service.the_state = replace(state, runs=runs, nodes=nodes)
print(*runs, *nodes)
api = TestClient(create_app(service))
for path in ("health", "runs", "runs/tiny", "runs/tiyn", "nodes", "incidents", "goodput", "faults"):
    print(api.get("/v1/" + path).text)
print(api.get("/metrics").text)
"""


@pytest.fixture(scope="module")
def answers() -> list[str]:
    def under(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.run([sys.executable, "-c", CODE], env=env, check=True, capture_output=True, text=True).stdout

    return [under(seed) for seed in ("1", "2", "3")]


def test_answers_are_the_same_in_every_process(answers):
    orders, said = zip(*(text.split("\n", 1) for text in answers), strict=True)
    assert len(set(orders)) > 1, "the maps came in one order, so this test has seen nothing"
    assert "tiny" in said[0]
    assert len(set(said)) == 1
