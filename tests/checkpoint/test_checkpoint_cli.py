"""`python -m trainer checkpoint`: what people and scripts see."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_states import make_state, save_all

from trainer.__main__ import main


@pytest.fixture
def root(tmp_path):
    save_all(tmp_path, 100)
    save_all(tmp_path, 200)
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["checkpoint", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list(root, capsys):
    code, out, _ = run(capsys, "list", root)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["step", "tier", "kind", "proven", "shards", "size", "path"]
    assert [line[:5] for line in lines[1:]] == [[step, "durable", "permanent", "yes", "2"] for step in ("200", "100")]


def test_list_says_what_is_damaged(root, capsys):
    (root / "step-00000200" / "shard-00001-of-00002.safetensors").write_bytes(b"short")
    (root / "step-00000100" / "shard-00000-of-00002.proven.json").unlink()
    code, out, _ = run(capsys, "list", root, "--json")
    damaged, unproven = json.loads(out)
    assert code == 1
    assert "shard-00001-of-00002.safetensors has 5 bytes" in damaged["damage"]
    assert (unproven["proven"], unproven["damage"]) == (False, "")
    assert run(capsys, "list", root)[0] == 1


@pytest.mark.parametrize("command", ["list", "verify"])
def test_nothing_there(tmp_path, capsys, command):
    code, out, err = run(capsys, command, tmp_path)
    assert (code, out) == (4, "")
    assert "no checkpoints in" in err


def test_verify_reads_every_byte(root, capsys):
    code, out, _ = run(capsys, "verify", root)
    assert (code, out.count("proven ")) == (0, 2)
    path = root / "step-00000200" / "shard-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, out, _ = run(capsys, "verify", root)
    assert (code, out.count("proven "), out.count("damaged ")) == (1, 1, 1)
    assert run(capsys, "verify", path.parent)[0] == 1
    assert run(capsys, "verify", root / "step-00000100")[0] == 0


def test_show(root, capsys):
    code, out, _ = run(capsys, "show", root / "step-00000100")
    assert code == 0
    assert "step 100, permanent, proven" in out
    assert "model.embed  float32 [7, 5]" in out
    code, out, _ = run(capsys, "show", root / "step-00000100", "--json")
    assert json.loads(out)["meta"]["position"] == 100
    (root / "step-00000100" / "manifest.json").write_text("{}")
    code, out, err = run(capsys, "show", root / "step-00000100")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "manifest.json is damaged" in err


def test_an_unknown_storage_is_an_error_in_a_sentence(capsys):
    code, _, err = run(capsys, "list", "nonsense://x")
    assert code == 1
    assert "nonsense://x can't be used" in err
    assert "Traceback" not in err


def test_torchs_own_tools_read_the_export(root, tmp_path, capsys):
    state = {f"weights.{name}": tensor for name, tensor in make_state(5).items()}
    state["exp_avg.w"] = torch.ones(3, 2)
    save_all(tmp_path / "run", 5, state, shards=3)
    out = tmp_path / "dcp"
    assert run(capsys, "export-dcp", tmp_path / "run" / "step-00000005", out)[0] == 0
    wanted = {**{name: torch.zeros_like(tensor) for name, tensor in state.items()}, "step": torch.tensor(0)}
    dcp.load(wanted, checkpoint_id=out, no_dist=True)
    assert wanted.pop("step").item() == 5
    assert all(torch.equal(wanted[name], tensor) for name, tensor in state.items())


def test_an_export_of_weights_alone_and_never_over_something(root, tmp_path, capsys):
    state = {"weights.w": torch.ones(4), "exp_avg.w": torch.ones(4)}
    save_all(tmp_path / "run", 5, state)
    source, out = tmp_path / "run" / "step-00000005", tmp_path / "dcp"
    assert run(capsys, "export-dcp", source, out, "--weights")[0] == 0
    names = dcp.FileSystemReader(out).read_metadata().state_dict_metadata.keys()
    assert set(names) == {"weights.w", "step"}
    code, _, err = run(capsys, "export-dcp", source, out)
    assert code == 1
    assert "is not empty" in err
    code, _, err = run(capsys, "export-dcp", root / "step-00000100", tmp_path / "other", "--weights")
    assert code == 1
    assert "holds nothing of weights" in err
