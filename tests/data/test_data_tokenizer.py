"""Tokenizers: bytes round-trip; a tokenizer.json is read as its vocabulary says."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.errors import SourceError, SourceNotFoundError
from trainer.data.prepare import prepare
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer


@given(st.text())
def test_bytes_round_trip(text):
    ids = ByteTokenizer().encode(text)
    assert ids.tolist() == list(text.encode())
    assert ByteTokenizer().decode(np.append(ids, [256, 257])) == text


def test_bytes_cut_inside_a_character_still_decode():
    assert ByteTokenizer().decode(np.frombuffer("aä".encode()[:2], np.uint8)) == "a\ufffd"


@pytest.fixture
def tokenizer_json(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "one": 1, "two": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<pad>", "<|endoftext|>", "<other>"])
    backend.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


def test_a_tokenizer_json_gives_ids_size_and_specials(tokenizer_json):
    tokenizer = HuggingFaceTokenizer(tokenizer_json)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == ("words", 6, 4, 3)
    assert tokenizer.encode("one two").tolist() == [1, 2]
    assert tokenizer.decode(np.array([1, 2, 4])) == "one two"
    assert HuggingFaceTokenizer(tokenizer_json, eos="<other>").eos_id == 5


def test_a_special_token_written_in_a_text_ends_no_document(tokenizer_json, tmp_path):
    (tmp_path / "text.txt").write_text("one <|endoftext|> two")
    manifest = prepare([tmp_path / "text.txt"], tmp_path / "out", HuggingFaceTokenizer(tokenizer_json))
    ids = np.fromfile(tmp_path / "out" / "part-000.npy", "u1").tolist()
    assert ids.count(4) == manifest["documents"] == 1
    assert manifest["dtype"] == "uint8"


def test_unusable_tokenizers_are_said(tokenizer_json, tmp_path, monkeypatch):
    with pytest.raises(SourceNotFoundError, match="absent"):
        HuggingFaceTokenizer(tmp_path / "absent.json")
    with pytest.raises(SourceError, match="no token <none>: name its end of text with --eos"):
        HuggingFaceTokenizer(tokenizer_json, eos="<none>")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SourceError, match=r"bad\.json is no tokenizer\.json"):
        HuggingFaceTokenizer(tmp_path / "bad.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SourceError, match="pip install tokenizers"):
        HuggingFaceTokenizer(tokenizer_json)
