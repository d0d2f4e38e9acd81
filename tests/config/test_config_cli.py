"""`python -m trainer check`: exit codes, JSON, and the files and models a configuration names."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from trainer import config_cli


@pytest.fixture
def config_file(tmp_path):
    np.zeros(64 * 16, dtype="<u2").tofile(tmp_path / "part-000.npy")

    def write(**changes):
        data = {"paths": [str(tmp_path / "part-000.npy")], "sequence_length": 64, **changes.pop("data", {})}
        value = {"run_dir": str(tmp_path), "steps": 2, "batch_tokens": 512, "data": data, **changes}
        (tmp_path / "trainer.yaml").write_text(yaml.safe_dump(value))
        return str(tmp_path / "trainer.yaml")

    return write


def run(capsys, *argv) -> tuple[int, list[dict]]:
    code = config_cli.main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_good_file(config_file, capsys):
    assert run(capsys, config_file()) == (0, [])
    assert run(capsys, config_file(), "--world-size", "4") == (0, [])
    assert config_cli.main([config_file()]) == 0
    assert capsys.readouterr().out.endswith("trainer.yaml: good\n")


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"steps": 0}, "steps", "must be at least 1"),
        ({"model": {"name": "gpt"}}, "model", "unknown model 'gpt'"),
        ({"model": {"overrides": {"layer": 3}}}, "model", "has no field 'layer'"),
        ({"data": {"paths": ["/absent.npy"]}}, "data.paths", "token file /absent.npy doesn't exist"),
        ({"data": {"paths": [], "mix": "/absent.txt"}}, "data.mix", "mix file /absent.txt doesn't exist"),
        (
            {"data": {"sequence_length": 2048}, "batch_tokens": 2048},
            "data.paths",
            "no token file holds a whole sequence",
        ),
        ({"data": {"vocab_size": 100278}}, "data.paths", "the tokenizer's vocabulary of 100278 doesn't fit"),
        ({"batch_tokens": 64 * 17}, "batch_tokens", "the token files hold 16 sequences of 64, a batch is 17"),
    ],
)
def test_problems_are_listed_with_their_key(config_file, capsys, changes, key, message):
    code, [problem] = run(capsys, config_file(**changes))
    assert code == 3
    assert problem["key"] == key
    assert message in problem["message"]


def test_the_layout_is_checked_when_asked_for(config_file, capsys):
    code, [problem] = run(capsys, config_file(), "--world-size", "3")
    assert (code, problem["key"]) == (3, "batch_tokens")
    assert config_cli.main([config_file(), "--world-size", "3"]) == 3
    assert capsys.readouterr().out == "batch_tokens: 8 sequences a batch can't be shared evenly by 3 ranks; 2 can\n"


def test_usage_and_missing_files(tmp_path, capsys):
    assert config_cli.main([]) == 2
    assert config_cli.main(["a", "b"]) == 2
    assert config_cli.main(["--help"]) == 0
    assert config_cli.main([str(tmp_path / "absent.yaml")]) == 4
    assert "absent.yaml doesn't exist" in capsys.readouterr().err


def test_it_imports_no_torch(config_file):
    code = (
        "import sys; from trainer.config_cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, config_file()], check=False).returncode == 0
