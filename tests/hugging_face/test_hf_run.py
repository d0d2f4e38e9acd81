"""A run trained here, from its first weights to text out of transformers, through the commands that users type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml

from trainer.__main__ import main
from trainer.hugging_face.model import load_model
from trainer.hugging_face.weights import StoredWeights
from trainer.model.presets import model_config

ROOT = Path(__file__).resolve().parents[2]
CPU, FLOAT32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint16).tofile(path)
    return path


@pytest.fixture(scope="module")
def write_config(tokens: Path) -> Callable[..., Path]:
    def write(folder: Path, **changes: object) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "run_dir": str(folder),
            "steps": 3,
            "batch_tokens": 128,
            "device": "cpu",
            "model": {"name": "olmo_hybrid_tiny"},
            "data": {"paths": [str(tokens)], "sequence_length": 32},
            "optimizer": {"lr": 1e-2},
            "checkpoint": {"interval_steps": 2},
            **changes,
        }
        path = folder / "trainer.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def train(config: Path, ranks: int = 1) -> subprocess.CompletedProcess:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *launch, "-m", "trainer", "train", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> Path:
    """A trained run's folder."""
    folder = tmp_path_factory.mktemp("run")
    done = train(write_config(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    assert main(["export", str(run), str(out), "--dtype", "float32", "--max-shard-size", "100KB"]) == 0
    return out


def test_transformers_generates_from_a_run_trained_here(run: Path, exported: Path) -> None:
    ours, text = load_model(str(run), CPU, FLOAT32)
    assert (text.max_position_embeddings, text.eos_token_id, text.pad_token_id) == (32, 256, 257)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer("To be, or not", return_tensors="pt")["input_ids"]
    generated = theirs.generate(prompt, max_new_tokens=6, do_sample=False)
    assert generated.shape[1] > prompt.shape[1]
    assert tokenizer.decode(generated[0]).startswith("To be, or not")


def test_export_is_of_the_newest_checkpoint_and_of_the_one_named(run: Path, exported: Path, tmp_path: Path) -> None:
    older = run / "checkpoints" / "step-00000002"
    assert main(["export", str(older), str(tmp_path / "older"), "--dtype", "float32"]) == 0
    spec = model_config("olmo_hybrid_tiny")
    newest, second = (StoredWeights.open(path, spec) for path in (exported, tmp_path / "older"))
    assert not torch.equal(newest.read("head.weight"), second.read("head.weight"))
    trained = load_model(str(run / "checkpoints" / "step-00000003"), CPU, FLOAT32)[0].state_dict()
    assert all(torch.equal(newest.read(name), tensor) for name, tensor in trained.items())


def test_bfloat16_is_the_default(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_text_comes_from_a_folder_and_from_a_run_alike(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for where in (run, exported):
        assert main(["generate", "--model", str(where), "--prompt", "Hello", "--max-new-tokens", "5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("Hello")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_begins_from_an_imported_folder(
    ranks: int, exported: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """With a learning rate of nearly nothing the weights stay what they were, on any number of ranks."""
    assert main(["import", str(exported), str(tmp_path / "first")]) == 0
    config = write_config(tmp_path / "run", init_from=str(tmp_path / "first"), steps=1, optimizer={"lr": 1e-12})
    done = train(config, ranks)
    assert done.returncode == 0, done.stderr
    begun = load_model(str(tmp_path / "run"), CPU, FLOAT32)[0].state_dict()
    weights = StoredWeights.open(exported, model_config("olmo_hybrid_tiny"))
    for name, tensor in begun.items():
        torch.testing.assert_close(tensor, weights.read(name), rtol=0, atol=1e-9)


def test_weights_of_another_model_end_a_run_before_it_begins(
    exported: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    model = {"name": "olmo_hybrid_tiny", "overrides": {"rope_theta": None}}
    config = write_config(tmp_path / "run", init_from=str(exported), model=model)
    done = train(config)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "init_from" in line
    assert "rope_parameters is {'rope_theta': 500000.0, 'rope_type': 'default'} there" in line
    assert main(["check", str(config)]) == 3
    changed = write_config(tmp_path / "changed", init_from=str(exported), model=model, init_changes=["rope_parameters"])
    assert main(["check", str(changed)]) == 0
    missing = write_config(tmp_path / "missing", init_from=str(tmp_path / "nowhere"))
    assert main(["check", str(missing)]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "/nowhere", "OUT"], "/nowhere doesn't exist"),
        (["export", "EMPTY", "OUT"], "holds no checkpoint"),
        (["export", "RUN", "FULL"], "is there already"),
        (["export", "RUN", "OUT", "--config", "OTHER"], "the configuration says"),
        (["export", "RUN", "OUT", "--tokenizer", "EMPTY"], "holds no tokenizer.json"),
        (["import", "EMPTY", "OUT"], "has no config.json: name its model"),
        (["import", "EMPTY", "OUT", "--model", "gpt"], "unknown model 'gpt'"),
        (["import", "EMPTY", "OUT", "--model", "olmo3_1m"], "holds neither"),
        (["import", "EXPORT", "OUT", "--model", "olmo_hybrid_1m"], "contradicts the model: hidden_size"),
        (["generate", "--model", "EMPTY", "--prompt", "x"], "holds no checkpoint"),
        (["generate", "--model", "RUN", "--prompt", "x", "--temperature", "nan"], "--temperature finite"),
    ],
)
def test_a_users_mistake_is_one_clear_line(
    arguments: list[str],
    said: str,
    run: Path,
    exported: Path,
    tmp_path: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    places = {
        "RUN": run,
        "EXPORT": exported,
        "EMPTY": tmp_path / "empty",
        "FULL": tmp_path / "full",
        "OUT": tmp_path / "out",
        "OTHER": write_config(tmp_path / "other", model={"name": "olmo_hybrid_1m"}),
    }
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 3
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_never_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "step-00000003"
    copy.mkdir()
    for path in (run / "checkpoints" / copy.name).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (shard,) = copy.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 6] ^= 1
    shard.write_bytes(content)
    assert main(["export", str(copy), str(tmp_path / "out")]) == 3
    assert str(copy) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]
