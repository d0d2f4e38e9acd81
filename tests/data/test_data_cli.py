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
