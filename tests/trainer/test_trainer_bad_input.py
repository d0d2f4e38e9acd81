"""What a user can get wrong, and what can go wrong around a run: an exit code and one clear line, or a counted skip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lone_run import Done, train_alone
from safetensors.torch import load_file, save_file
from trainer_harness import STEPS, Standby, digests, losses

EXIT_ERROR, EXIT_INVALID = 1, 3


def assert_refused(done: Done, said: str, code: int = EXIT_INVALID) -> None:
    assert done.code == code, done.log
    assert "Traceback" not in done.log
    assert len(done.errors) == 1, done.log
    assert said in done.errors[0]


@pytest.fixture
def train(standby: Standby, tmp_path: Path, write_config: Callable[..., Path]) -> Callable[..., Done]:
    """train(strikes, environ, **changes) -> what `python -m trainer train` made of it."""

    def run(strikes: list[dict] | None = None, environ: dict[str, str] | None = None, **changes: object) -> Done:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return train_alone(standby, write_config(folder, **changes), strikes, environ)

    return run


@pytest.fixture(scope="module")
def undisturbed(
    standby: Standby, tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]
) -> tuple[list, list]:
    """Losses and digests of a run of one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert standby.run(["train", "--config", str(write_config(folder))], {}, folder / "log") == 0
    return losses(folder, 1), digests(folder, 1)


def data_of(path: Path, tokens: np.ndarray, **changes: object) -> dict:
    tokens.tofile(path)
    return {"data": {"paths": [str(path)], "sequence_length": 32, **changes}}


# --- data


def test_a_token_outside_the_vocabulary_is_named_with_its_place(train: Callable[..., Done], tmp_path: Path) -> None:
    tokens = np.zeros(2048, np.uint16)
    tokens[1234] = 384
    assert_refused(train(**data_of(tmp_path / "bad.npy", tokens)), "token 384 at offset 1234")


def test_files_shorter_than_a_sequence_are_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    short = data_of(tmp_path / "short.npy", np.zeros(31, np.uint16))
    assert_refused(train(**short), "whole sequence of 32 tokens")


def test_fewer_sequences_than_a_batch_are_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(train(**data_of(tmp_path / "few.npy", np.zeros(64, np.uint16))), "a batch")


def test_a_file_of_another_type_is_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(train(**data_of(tmp_path / "odd.npy", np.zeros(4097, np.uint8))), "4097 bytes")


# --- layout and configuration


def test_a_world_that_does_not_share_the_batch_is_refused(train: Callable[..., Done]) -> None:
    assert_refused(train(environ={"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}), "3 ranks")


def test_a_batch_of_no_whole_sequences_is_refused(train: Callable[..., Done]) -> None:
    assert_refused(train(batch_tokens=250), "batch_tokens: 250 is no multiple")


def test_micro_batches_that_do_not_divide_the_share_are_refused(train: Callable[..., Done]) -> None:
    assert_refused(train(micro_batch_sequences=3), "micro_batch_sequences")


def test_a_run_folder_that_cannot_be_made_is_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(train(run_dir=str(tmp_path / "file" / "run")), "run_dir: ")


def test_a_folder_for_checkpoints_that_cannot_be_made_is_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(train(checkpoint={"path": str(tmp_path / "file" / "deep")}), str(tmp_path / "file"))


def test_a_configuration_that_is_not_there_is_refused(standby: Standby, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert standby.run(["train", "--config", "/nowhere.yaml"], {}, log) == EXIT_INVALID
    (line,) = log.read_text().splitlines()
    assert "/nowhere.yaml" in line


# --- numbers that are not finite


def test_a_nan_that_comes_once_is_computed_again(train: Callable[..., Done], undisturbed: tuple[list, list]) -> None:
    done = train([{"point": "forward", "step": 4, "do": "poison_gradient"}])
    assert done.code == 0
    assert "trying again" in done.log
    assert (losses(done.folder, 1), digests(done.folder, 1)) == undisturbed


def test_a_nan_that_stays_skips_its_step_and_is_counted(train: Callable[..., Done]) -> None:
    done = train([{"point": "forward", "step": 4, "do": "poison_gradient", "times": 2}])
    assert done.code == 0
    assert done.outcomes == ["update"] * 3 + ["skip"] + ["update"] * (STEPS - 4)
    assert "step 4 is not finite: reduced gradient of rank 0, skipped" in done.log
    manifest = json.loads((done.folder / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())
    assert manifest["meta"]["statistics"]["skipped"] == 1


def test_nothing_but_nan_ends_the_run_with_a_verdict(train: Callable[..., Done]) -> None:
    optimizer = {"max_skipped_in_row": 2}
    poison = {"point": "forward", "do": "poison_gradient", "times": 2}
    done = train([{**poison, "step": 4}, {**poison, "step": 5}], optimizer=optimizer)
    assert_refused(done, "steps 4 to 5 were all skipped", EXIT_ERROR)
    assert not (done.folder / "checkpoints" / f"step-{STEPS:08d}").exists()


# --- weights to begin with


@pytest.fixture(scope="module")
def exported(
    standby: Standby, tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]
) -> Callable[[Path, Callable[[dict], object]], Path]:
    """exported(folder, change) -> a Hugging Face folder whose tensors were changed in place."""
    source = tmp_path_factory.mktemp("source")
    assert standby.run(["train", "--config", str(write_config(source, steps=1))], {}, source / "log") == 0
    argv = ["export", str(source), str(source / "export"), "--dtype", "float32"]
    assert standby.run(argv, {}, source / "log") == 0, (source / "log").read_text()

    def make(folder: Path, change: Callable[[dict], object]) -> Path:
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "export" / "config.json").read_bytes())
        tensors = load_file(source / "export" / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


HEAD = "lm_head.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(HEAD), HEAD),
        (lambda tensors: tensors.update(strange=torch.zeros(1)), "strange"),
        (lambda tensors: tensors.update({HEAD: tensors[HEAD][1:].clone()}), HEAD),
        (lambda tensors: tensors[HEAD].view(-1)[5:6].fill_(float("nan")), "not finite"),
    ],
    ids=["missing", "unknown", "misshapen", "not finite"],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict], object],
    said: str,
    exported: Callable[..., Path],
    train: Callable[..., Done],
    tmp_path: Path,
) -> None:
    assert_refused(train(init_from=str(exported(tmp_path / "weights", change))), said)


def test_a_folder_of_weights_that_is_not_there_is_refused(train: Callable[..., Done]) -> None:
    assert_refused(train(init_from="/nowhere"), "/nowhere")


# --- resuming


def test_resuming_with_another_order_or_other_data_is_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    data = data_of(tmp_path / "a.npy", np.zeros(64_000, np.uint16))
    assert train(steps=3, **data).code == 0
    assert_refused(train(data={**data["data"], "seed": 99}), "seed was")
    assert_refused(train(**data_of(tmp_path / "a.npy", np.ones(64_000, np.uint16))), "other data")
    assert train(**data_of(tmp_path / "a.npy", np.zeros(64_000, np.uint16))).code == 0


def test_resuming_another_model_is_refused(train: Callable[..., Done]) -> None:
    assert train(steps=3).code == 0
    assert_refused(train(model={"name": "olmo_hybrid_tiny", "overrides": {"mlp_dim": 64}}), "shape")


# --- the disk


def test_a_full_disk_costs_one_checkpoint_and_no_other(
    train: Callable[..., Done], tmp_path: Path, undisturbed: tuple[list, list]
) -> None:
    root = str(tmp_path / "run" / "checkpoints")
    full = {"point": "forward", "step": 5, "do": "fill_disk", "root": root}
    done = train([full, {"point": "after_step", "step": 6, "do": "free_disk"}])
    assert done.code == 0, done.log
    assert "No space left on device" in done.log or (Path(root) / "step-00000006").exists()
    assert (Path(root) / "step-00000003").exists()
    assert (Path(root) / f"step-{STEPS:08d}").exists()
    assert (losses(done.folder, 1), digests(done.folder, 1)) == undisturbed


def test_a_disk_that_stays_full_fails_the_run_and_a_second_one_goes_on(
    train: Callable[..., Done], tmp_path: Path, undisturbed: tuple[list, list]
) -> None:
    root = str(tmp_path / "run" / "checkpoints")
    done = train([{"point": "forward", "step": 5, "do": "fill_disk", "root": root}])
    assert_refused(done, "No space left on device")
    assert [path.name for path in sorted(Path(root).glob("step-*"))] == ["step-00000003"]
    assert train().code == 0
    assert (losses(done.folder, 1), digests(done.folder, 1)) == undisturbed
