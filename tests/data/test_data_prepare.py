"""Preparing token files: contents, manifest, determinism, and what happens to bad input."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.data.dataset import TokenDataset
from trainer.data.errors import SourceError, SourceNotFoundError
from trainer.data.prepare import prepare, unigram_entropy
from trainer.data.tokenizer import ByteTokenizer

EOS = 256


def run(source: Path | list[Path], out: Path, **options) -> dict:
    return prepare(source if isinstance(source, list) else [source], out, ByteTokenizer(), **options)


def stream(out: Path) -> list[int]:
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(out.glob("part-*.npy"))]).tolist()


def text_tokens(*texts: str) -> list[int]:
    return [token for text in texts for token in [*text.encode(), EOS]]


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "sources"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "one.txt").write_bytes("zwei \r\n Zeilen, ä".encode())
    (folder / "a.py").write_text("x = 1\n")
    (folder / "c.jsonl").write_text('{"text": "first"}\n\n{"text": "second", "id": 7}\n')
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "packed"}\n')
    (folder / "ignored.md").write_text("no")
    (folder / ".git").mkdir()
    (folder / ".git" / "hidden.txt").write_text("no")
    return folder


EXPECTED = text_tokens("x = 1\n", "zwei \r\n Zeilen, ä", "first", "second", "packed")


def test_documents_come_sorted_by_path_each_ended_by_eos(sources, tmp_path):
    manifest = run(sources, tmp_path / "out")
    assert stream(tmp_path / "out") == EXPECTED
    assert manifest["documents"] == 5
    assert manifest["tokens"] == len(EXPECTED) == manifest["source_bytes"] + 5


def test_the_manifest_proves_the_files(sources, tmp_path):
    manifest = run(sources, tmp_path / "out", part_bytes=20)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["files"]) == 3
    for file in manifest["files"]:
        raw = (tmp_path / "out" / file["name"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == file["sha256"]
        assert len(raw) == file["bytes"] == 2 * file["tokens"]
        assert raw[-2:] == EOS.to_bytes(2, "little")
    assert sum(file["documents"] for file in manifest["files"]) == 5
    assert stream(tmp_path / "out") == EXPECTED


def test_the_entropy_is_that_of_the_stream(sources, tmp_path):
    manifest = run(sources, tmp_path / "out")
    shares = [EXPECTED.count(token) / len(EXPECTED) for token in set(EXPECTED)]
    assert manifest["unigram_entropy_nats"] == pytest.approx(-math.fsum(p * math.log(p) for p in shares), rel=1e-12)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_entropy_lies_between_none_and_uniform(counts):
    entropy = unigram_entropy(np.array(counts, dtype=np.int64))
    assert -1e-12 <= entropy <= math.log(len(counts)) + 1e-12
    assert unigram_entropy(np.full(8, 3)) == pytest.approx(math.log(8))


def test_equal_sources_give_equal_bytes(sources, tmp_path):
    run(sources, tmp_path / "one")
    run(sources, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("limit", [1, 6, 7, 23, 24, 25, 1000])
def test_max_bytes_takes_a_prefix_cut_at_a_character(sources, tmp_path, limit):
    manifest = run(sources, tmp_path / "out", max_bytes=limit)
    whole = [token for token in EXPECTED if token != EOS]
    taken = [token for token in stream(tmp_path / "out") if token != EOS]
    assert taken == whole[: len(taken)]
    assert bytes(taken).decode()
    assert manifest["source_bytes"] == len(taken)
    assert limit - 1 <= len(taken) <= limit or taken == whole


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", 'no object with a string field "text"'),
        ('{"text": 1}', 'no object with a string field "text"'),
        ('{"text": "\\ud800"}', "its text holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, line, why):
    source = tmp_path / "lines.jsonl"
    source.write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(SourceError, match=rf"lines\.jsonl, line 2: {why}"):
        run(source, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".out*"))
    assert run(source, tmp_path / "out", skip_bad=True)["skipped"]["bad_lines"] == 1
    assert stream(tmp_path / "out") == text_tokens("good")


def test_a_broken_archive_is_named(tmp_path):
    source = tmp_path / "lines.jsonl.gz"
    source.write_bytes(gzip.compress(b'{"text": "good"}\n' * 1000)[:-12])
    with pytest.raises(SourceError, match=r"lines\.jsonl\.gz can't be read after line"):
        run(source, tmp_path / "out", skip_bad=True)


def test_undecodable_files_and_empty_documents_are_counted(sources, tmp_path):
    (sources / "latin.txt").write_bytes(b"caf\xe9")
    (sources / "empty.txt").write_bytes(b"")
    assert run(sources, tmp_path / "out")["skipped"] == {"undecodable_files": 1, "bad_lines": 0, "empty_documents": 1}
    assert stream(tmp_path / "out") == EXPECTED


def test_nothing_to_prepare_is_an_error(tmp_path):
    (tmp_path / "sources").mkdir()
    with pytest.raises(SourceError, match="no text in 0 source files"):
        run(tmp_path / "sources", tmp_path / "out")
    with pytest.raises(SourceNotFoundError, match="absent doesn't exist"):
        run(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "note.md").write_text("text")
    with pytest.raises(SourceError, match=r"note\.md is none of \.txt"):
        run(tmp_path / "note.md", tmp_path / "out")


def test_an_existing_folder_is_kept_unless_told_otherwise(sources, tmp_path):
    run(sources, tmp_path / "out")
    with pytest.raises(SourceError, match="exists"):
        run(sources, tmp_path / "out", max_bytes=3)
    (sources / "e.jsonl").write_text("bad")
    with pytest.raises(SourceError, match="line 1"):
        run(sources, tmp_path / "out", overwrite=True)
    assert stream(tmp_path / "out") == EXPECTED
    run(sources, tmp_path / "out", max_bytes=3, overwrite=True)
    assert stream(tmp_path / "out") == text_tokens("x =")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sources"]


def test_what_is_prepared_can_be_trained_on(sources, tmp_path):
    manifest = run(sources, tmp_path / "out")
    data = TokenDataset(DataConfig(paths=[str(tmp_path / "out")], sequence_length=8), 384, 2)
    assert data.instances == manifest["tokens"] // 8
    windows = {tuple(EXPECTED[i : i + 8]) for i in range(0, len(EXPECTED) - 7, 8)}
    assert {tuple(row) for row in data.batch(0).tokens.tolist()} <= windows
    eos = data.batch(0).tokens == EOS
    assert torch_equal(data.batch(0).document_ids[:, 1:], eos.cumsum(1)[:, :-1])


def torch_equal(a, b) -> bool:
    return a.tolist() == b.tolist()
