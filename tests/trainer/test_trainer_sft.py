"""Instruction tuning: packed documents with label masks, the same in every world, resumed where it was."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trainer_harness import STEPS, Supervisor, digests, losses

EOS = 256


@pytest.fixture(scope="session")
def sft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts in open-instruct's layout, documents of 3 to 40 tokens, the first third of each a prompt."""
    folder = tmp_path_factory.mktemp("sft")
    generator = np.random.default_rng(0)
    for part in range(2):
        tokens, masks = [], []
        for length in generator.integers(3, 40, 60).tolist():
            tokens += [*generator.integers(0, 256, length - 1).tolist(), EOS]
            masks += [at >= length // 3 for at in range(length)]
        np.array(tokens, dtype="<u2").tofile(folder / f"token_ids_part_{part:04d}.npy")
        np.array(masks, dtype=bool).tofile(folder / f"labels_mask_part_{part:04d}.npy")
    return folder


def test_losses_do_not_depend_on_the_world_and_a_kill_costs_nothing(
    make_run: Callable[..., Supervisor], sft_folder: Path
) -> None:
    data = {"paths": [str(sft_folder)], "sequence_length": 32, "packing": "best_fit"}
    alone = make_run(replicas=1, shards=1, folder="alone", data=data)
    alone.start()
    alone.wait_completed()
    together = make_run(folder="together", data=data)
    together.start()
    together.wait_completed()
    struck = make_run(folder="struck", data=data)
    struck.start({1: [{"point": "backward", "step": 4, "do": "kill"}]})
    assert struck.wait_exit(1) == signal.SIGKILL
    struck.recover([1])
    struck.wait_completed()
    assert losses(struck.folder) == losses(together.folder)
    assert digests(struck.folder) == digests(together.folder)
    [one] = losses(alone.folder, ranks=1)
    for step in range(1, STEPS + 1):
        expected, found = (
            tuple(map(float.fromhex, values)) for values in (one[step], losses(together.folder)[0][step])
        )
        assert found == pytest.approx(expected, rel=1e-4)
