"""`python -m trainer data`: exit codes, output, and that it needs no torch."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from trainer.data import cli
from trainer.data.errors import SourceNotFoundError
from trainer.data.stdlib import standard_library_files


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("hello")
    return path


def test_it_prepares_and_prints_the_manifest(source, tmp_path, capsys):
    assert cli.main(["prepare", str(source), "--out", str(tmp_path / "out"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tokens"] == 6


def test_it_says_what_was_done_and_skipped(source, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    assert cli.main(["prepare", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "6 tokens of 1 documents in 1 files, uint16" in (said := capsys.readouterr().out)
    assert "skipped: 1 undecodable files" in said


def test_exit_codes(source, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    assert cli.main([]) == 2
    assert cli.main(["prepare", *out]) == 2
    assert cli.main(["prepare", str(source), *out, "--max-bytes", "-1"]) == 2
    assert cli.main(["--help"]) == 0
    assert cli.main(["prepare", str(tmp_path / "absent"), *out]) == 4
    assert cli.main(["prepare", str(source), *out, "--tokenizer", str(tmp_path / "absent")]) == 4
    (tmp_path / "bad.jsonl").write_text("{")
    assert cli.main(["prepare", str(tmp_path / "bad.jsonl"), *out]) == 3
    assert cli.main(["prepare", str(tmp_path / "bad.jsonl"), str(source), *out, "--skip-bad"]) == 0
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert cli.main(["prepare", str(source), *out]) == 1
    assert "error: [Errno 28] No space left" in capsys.readouterr().err


def test_it_imports_no_torch(source, tmp_path):
    code = (
        "import sys; from trainer.data.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", code, "prepare", str(source), "--out", str(tmp_path / "out")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_standard_library_is_a_source_without_tests_and_packages(tmp_path):
    for name in ("b.py", "a.py", "test/t.py", "json/tests/t.py", "json/tool.py", "site-packages/p.py", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    names = [path.relative_to(tmp_path).as_posix() for path in standard_library_files(tmp_path)]
    assert names == ["a.py", "b.py", "json/tool.py"]
    with pytest.raises(SourceNotFoundError):
        standard_library_files(tmp_path / "absent")


def test_this_interpreters_library_is_prepared_up_to_a_limit(tmp_path, capsys):
    command = ["prepare", "--stdlib", "--out", str(tmp_path / "out"), "--max-bytes", "200000", "--json"]
    assert cli.main(command) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["source_bytes"] == 200000
    assert 2.5 < manifest["unigram_entropy_nats"] < 4


@pytest.fixture
def run_config(tmp_path):
    """A run over a mix of two labels, with the bytes of known texts."""
    for name, text in (("a", "hello world. " * 8), ("b", "x = 1\n" * 8)):
        (tmp_path / f"{name}.npy").write_bytes(b"".join(bytes([byte, 0]) for byte in text.encode()))
    (tmp_path / "mix.txt").write_text("web,a.npy\ncode,b.npy\n")
    path = tmp_path / "trainer.yaml"
    path.write_text(
        f"run_dir: {tmp_path}\nsteps: 20\nbatch_tokens: 16\nmodel: {{name: olmo_hybrid_tiny}}\n"
        f"data: {{mix: {tmp_path}/mix.txt, sequence_length: 8}}\n"
    )
    return path


def test_it_describes_what_a_run_trains_on(run_config, capsys):
    assert cli.main(["describe", "--config", str(run_config), "--first", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_by_label"] == {"web": 104, "code": 48}
    assert (found["files"], found["instances"], found["batches_per_epoch"]) == (2, 13 + 6, 9)
    assert found["epochs"] == pytest.approx(20 / 9, abs=1e-4)
    texts = "hello world. " * 8, "x = 1\n" * 8
    windows = [text[at : at + 8] for text in texts for at in range(0, len(text) - 7, 8)]
    assert [windows[each["instance"]] for each in found["first"]] == [each["text"] for each in found["first"]]
    assert len(found["first"]) == 2


def test_its_description_can_be_read(run_config, capsys):
    assert cli.main(["describe", "--config", str(run_config)]) == 0
    said = capsys.readouterr().out
    assert "2 files, 152 tokens of uint16" in said
    assert "104  web" in said
    assert said.count("instance ") == 2


def test_a_configuration_that_cannot_be_described(run_config, tmp_path, capsys):
    assert cli.main(["describe"]) == 2
    assert cli.main(["describe", "--config", str(tmp_path / "absent.yaml")]) == 4
    (tmp_path / "a.npy").unlink()
    assert cli.main(["describe", "--config", str(run_config)]) == 4
    run_config.write_text("steps: x\n")
    assert cli.main(["describe", "--config", str(run_config)]) == 3
    capsys.readouterr()
