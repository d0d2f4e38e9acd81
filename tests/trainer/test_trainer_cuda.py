"""One rank on a GPU: killed and resumed to the same bits, and training as the CPU does.

One GPU can't hold a gang: NCCL refuses two ranks on one device, so ranks that leave and form again are tested on the CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lone_run import Done, train_alone
from trainer_harness import Standby, digests, losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

STEPS = 12
Train = Callable[..., Done]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: tmp_path_factory.mktemp(name)


@pytest.fixture(scope="module")
def train(standby: Standby, write_config: Callable[..., Path]) -> Train:
    """train(folder, strikes, **changes) -> what became of it."""

    def run(folder: Path, strikes: list[dict] | None = None, **changes: object) -> Done:
        settings = {
            "steps": STEPS,
            "device": "cuda",
            "compile": "off",
            "model": {"name": "olmo_hybrid_1m"},
            "optimizer": {"lr": 3e-3},
            "checkpoint": {"interval_steps": 4},
            **changes,
        }
        return train_alone(standby, write_config(folder, **settings), strikes)

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train, folders: Callable[[str], Path]) -> Path:
    done = train(folders("undisturbed"))
    assert done.code == 0, done.log
    return done.folder


def curve(folder: Path) -> list[float]:
    return [float.fromhex(loss) for _, (loss, _) in sorted(losses(folder, 1)[0].items())]


def assert_same_bits(folder: Path, reference: Path) -> None:
    assert losses(folder, 1) == losses(reference, 1)
    assert digests(folder, 1) == digests(reference, 1)


def test_killed_and_resumed_it_has_the_same_bits(
    train: Train, folders: Callable[[str], Path], undisturbed: Path
) -> None:
    folder = folders("killed")
    root = str(folder / "checkpoints")
    in_save = {"point": "save", "root": root, "mark": str(folder / "mark"), "number": 1}
    for strike in (
        {"point": "backward", "step": 3, "do": "kill"},
        {**in_save, "step": 4, "operation": "pwrite"},
        {"point": "optimizer", "step": 6, "do": "kill"},
        {**in_save, "step": 8, "operation": "rename"},
        {"point": "after_vote", "step": 11, "do": "kill"},
    ):
        assert train(folder, [strike]).code == -9
    done = train(folder)
    assert done.code == 0, done.log
    assert_same_bits(folder, undisturbed)


def test_compiled_it_is_killed_and_resumed_to_the_same_bits(train: Train, folders: Callable[[str], Path]) -> None:
    reference, folder = folders("compiled"), folders("compiled-killed")
    assert train(reference, compile="on").code == 0
    assert train(folder, [{"point": "backward", "step": 6, "do": "kill"}], compile="on").code == -9
    assert train(folder, compile="on").code == 0
    assert_same_bits(folder, reference)


def test_a_nan_that_comes_once_leaves_no_trace(train: Train, folders: Callable[[str], Path], undisturbed: Path) -> None:
    done = train(folders("poisoned"), [{"point": "forward", "step": 5, "do": "poison_gradient"}])
    assert done.code == 0, done.log
    assert "trying again" in done.log
    assert_same_bits(done.folder, undisturbed)


def test_it_learns_as_the_cpu_does_and_each_goes_on_from_the_other(
    train: Train, folders: Callable[[str], Path], undisturbed: Path
) -> None:
    """bfloat16 has 8 bits: losses near 5 differ by hundredths."""
    on_cpu = train(folders("cpu"), device="cpu")
    assert on_cpu.code == 0, on_cpu.log
    assert curve(undisturbed) == pytest.approx(curve(on_cpu.folder), abs=0.05)
    assert curve(undisturbed)[-1] < curve(undisturbed)[0] - 0.1
    for source, device in ((undisturbed, "cpu"), (on_cpu.folder, "cuda")):
        folder = folders(f"onto-{device}")
        shutil.copytree(source / "checkpoints" / "step-00000004", folder / "checkpoints" / "step-00000004")
        done = train(folder, device=device)
        assert done.code == 0, done.log
        assert curve(folder) == pytest.approx(curve(source)[4:], abs=0.05)
