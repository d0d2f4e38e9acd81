from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from trainer_harness import STEPS, Reference, Standby, Supervisor, digests, losses


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16).tofile(path)
    return path


@pytest.fixture(scope="session")
def standby() -> Iterator[Standby]:
    warm = Standby()
    yield warm
    assert warm.close() == 0


@pytest.fixture(scope="session")
def write_config(tokens: Path) -> Callable[..., Path]:
    """write_config(folder, **changes) -> the configuration of a small run in that folder."""

    def write(folder: Path, **changes: object) -> Path:
        config = {
            "run_dir": str(folder),
            "steps": STEPS,
            "batch_tokens": 256,
            "device": "cpu",  # also where there is a GPU: four ranks can't share one
            "seed": 3,
            "model": {"name": "olmo_hybrid_tiny"},
            "data": {"paths": [str(tokens)], "sequence_length": 32},
            "checkpoint": {"interval_steps": 3},
            **changes,
        }
        path = folder / "trainer.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def make_run(
    standby: Standby, tmp_path: Path, write_config: Callable[..., Path]
) -> Iterator[Callable[..., Supervisor]]:
    """make_run(replicas, shards, **changes) -> a supervisor; its processes are ended with the test."""
    runs: list[Supervisor] = []

    def make(replicas: int = 2, shards: int = 2, folder: str = "run", **changes: object) -> Supervisor:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        runs.append(Supervisor(standby, path, write_config(path, **changes), replicas, shards))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.fixture(scope="session")
def reference(
    standby: Standby, tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]
) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    run = Supervisor(standby, folder, write_config(folder))
    try:
        run.start()
        run.wait_completed()
    finally:
        run.close()
    return Reference(losses(folder), digests(folder), folder)
