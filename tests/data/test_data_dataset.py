"""Batches: contents, targets, documents, purity, and errors that say where."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.data.dataset import TokenDataset, check_fingerprint, document_ids
from trainer.data.errors import DataError, DataMismatchError, SourceNotFoundError
from trainer.data.order import epoch_order

EOS = 256


def rows(batch) -> list[list[int]]:
    return batch.tokens.tolist()


def test_windows_follow_the_order_and_drop_each_files_remainder(dataset):
    data = dataset(range(10), range(100, 109), range(200, 203))  # 2 windows, 2 windows, none
    windows = [[0, 1, 2, 3], [4, 5, 6, 7], [100, 101, 102, 103], [104, 105, 106, 107]]
    assert data.instances == 4
    for step in range(6):
        order = epoch_order(4, 2, seed=7, epoch=1 + step // 2)
        assert rows(data.batch(step)) == [windows[i] for i in order[step % 2]]


def test_an_empty_file_between_others_holds_nothing(dataset):
    data = dataset(range(4), [], range(10, 14))
    assert sorted(rows(data.batch(0))) == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_targets_are_the_next_tokens_and_the_last_has_none(dataset):
    batch = dataset(range(16)).batch(0)
    assert batch.tokens.dtype == batch.targets.dtype == batch.document_ids.dtype == torch.int64
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert batch.targets[:, -1].tolist() == [-100, -100]
    assert batch.loss_tokens == 2 * 3


def test_documents_end_with_their_eos(dataset):
    data = dataset([1, EOS, 2, 3, EOS, EOS, 4, 5], batch_sequences=1, sequence_length=8)
    assert data.batch(0).document_ids.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]


def test_without_a_known_eos_a_window_is_one_document():
    assert document_ids(np.array([[1, 2, 3]]), -1).tolist() == [[0, 0, 0]]


def test_padding_is_no_target(dataset):
    batch = dataset([1, 2, 257, 257], batch_sequences=1, pad_id=257).batch(0)
    assert batch.targets.tolist() == [[2, -100, -100, -100]]
    assert batch.loss_tokens == 1


@given(step=st.integers(0, 40), world=st.sampled_from([1, 2, 3, 6]))
def test_a_batch_is_the_same_for_every_world_size(tmp_path_factory, step, world):
    path = tmp_path_factory.mktemp("tokens") / "part-000.npy"
    np.arange(20 * 5, dtype="<u2").tofile(path)
    data = TokenDataset(DataConfig(paths=[str(path)], sequence_length=5), 258, 6)
    shares = [rows(data.batch(step, rank, world)) for rank in range(world)]
    together = [shares[i % world][i // world] for i in range(6)]
    fresh = TokenDataset(DataConfig(paths=[str(path)], sequence_length=5), 258, 6)
    assert together == rows(fresh.batch(step))


def test_repetitive_instances_leave_the_loss_but_not_its_divisor(dataset):
    looping, plain = [5, 6] * 32, list(range(64))
    data = dataset(looping + plain, sequence_length=64, mask_repetition=True)
    batch = data.batch(0)
    masked = [i for i in range(2) if (batch.targets[i] == -100).all()]
    assert [rows(batch)[i] for i in masked] == [looping]
    assert batch.loss_tokens == 2 * 63


def test_a_token_outside_the_vocabulary_names_file_and_offset(dataset):
    data = dataset([*range(13), 258, 0, 0], batch_sequences=4)
    with pytest.raises(DataError, match=r"part-000\.npy: token 258 at offset 13 .* vocabulary of 258"):
        data.batch(0)


@pytest.mark.parametrize("left", [0, 5, 30])
def test_a_file_cut_after_the_start_is_an_error_not_a_crash(dataset, token_file, left):
    data = dataset(range(16), batch_sequences=4)
    with open(data.config.paths[0], "r+b") as file:
        file.truncate(left)
    with pytest.raises(DataError, match=r"part-000\.npy"):
        data.batch(0)


def test_a_file_removed_after_the_start_is_named(dataset, tmp_path):
    data = dataset(range(16))
    (tmp_path / "part-000.npy").unlink()
    with pytest.raises(DataError, match=r"part-000\.npy can't be read"):
        data.batch(0)


@pytest.mark.parametrize(
    ("contents", "batch", "message"),
    [
        ([range(3)], 1, "no token file holds a whole sequence of 4 tokens; the largest of 1 has 3"),
        ([range(8)], 3, "hold 2 sequences of 4 tokens, a batch needs 3"),
        ([], 1, "no token files are given"),
    ],
)
def test_too_little_data_is_said(dataset, contents, batch, message):
    with pytest.raises(DataError, match=message):
        dataset(*contents, batch_sequences=batch)


def test_wrong_files_are_said(dataset, token_file, tmp_path):
    odd = token_file([1, 2, 3], "odd.npy", dtype="u1")
    with pytest.raises(DataError, match="3 bytes are no array of uint16"):
        dataset(paths=[str(odd)])
    with pytest.raises(SourceNotFoundError, match=r"absent\.npy doesn't exist"):
        dataset(paths=[str(tmp_path / "absent.npy")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no token file"):
        dataset(paths=[str(tmp_path / "empty")])


@pytest.mark.parametrize(("vocab", "dtype"), [(256, "u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_the_smallest_type_that_holds_the_vocabulary_is_read(tmp_path, vocab, dtype):
    path = tmp_path / "part-000.npy"
    np.array([0, vocab - 1], dtype=dtype).tofile(path)
    data = TokenDataset(DataConfig(paths=[str(path)], sequence_length=2), vocab, 1)
    assert rows(data.batch(0)) == [[0, vocab - 1]]


def write_manifest(folder, **changes) -> None:
    said = {"tokenizer": "byte", "dtype": "uint16", "vocab_size": 258, "eos_id": 9, "pad_id": -1, **changes}
    (folder / "manifest.json").write_text(json.dumps(said))


def test_the_manifest_beside_the_files_says_their_eos(dataset, tmp_path):
    write_manifest(tmp_path)
    assert dataset([1, 9, 2, 3], batch_sequences=1).batch(0).document_ids.tolist() == [[0, 0, 1, 1]]
    assert dataset([1, 9, 2, 3], batch_sequences=1, eos_id=2).batch(0).document_ids.tolist() == [[0, 0, 0, 1]]


def test_files_of_another_vocabulary_or_tokenizer_are_refused(dataset, token_file, tmp_path):
    write_manifest(tmp_path, dtype="uint32", vocab_size=100278)
    with pytest.raises(DataError, match=r"was prepared as uint32 .* Set data.vocab_size: 100278"):
        dataset(range(8))
    write_manifest(tmp_path)
    other = token_file(range(8), "other/part-000.npy")
    write_manifest(other.parent, tokenizer="dolma2")
    with pytest.raises(DataError, match="different tokenizers"):
        dataset(paths=[str(tmp_path / "part-000.npy"), str(other)])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is no manifest"):
        dataset(range(8))
    with pytest.raises(DataError, match="doesn't fit the model's of 258"):
        dataset(range(8), vocab_size=300)


def test_a_mix_file_names_files_by_label(dataset, token_file, tmp_path):
    token_file(range(4), "byte/a.npy")
    token_file(range(10, 14), "byte/b.npy")
    mix = tmp_path / "mix.txt"
    mix.write_text("# a comment\ncode,{TOKENIZER}/b.npy\n\nweb, {TOKENIZER}/a.npy\n")
    data = dataset(mix=str(mix), mix_tokenizer="byte")
    assert sorted(rows(data.batch(0))) == [[0, 1, 2, 3], [10, 11, 12, 13]]
    with pytest.raises(DataError, match=r"line 2 names \{TOKENIZER\}: set data.mix_tokenizer"):
        dataset(mix=str(mix))
    mix.write_text("no comma\n")
    with pytest.raises(DataError, match="line 1: expected `label,path`"):
        dataset(mix=str(mix))
    with pytest.raises(SourceNotFoundError, match="mix file"):
        dataset(mix=str(tmp_path / "absent"))


def test_the_fingerprint_survives_a_move_and_json(dataset, tmp_path):
    data = dataset(range(16))
    before = json.loads(json.dumps(data.fingerprint()))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "part-000.npy").rename(moved / "part-000.npy")
    check_fingerprint(before, dataset(paths=[str(moved)]).fingerprint())


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"sequence_length": 8}, "sequence_length was 4, is 8"),
        ({"batch_sequences": 1}, "batch_sequences was 2, is 1"),
        ({"mask_repetition": True}, "mask_repetition was 0, is 1"),
    ],
)
def test_a_changed_configuration_says_which_field_differs(dataset, changed, field):
    saved, current = dataset(range(16)).fingerprint(), dataset(range(16), **changed).fingerprint()
    assert saved["sha256"] != current["sha256"]
    with pytest.raises(DataMismatchError, match=field):
        check_fingerprint(saved, current)


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ([[*range(15), 99]], {"contents"}),
        ([range(20)], {"contents", "sizes"}),
        ([range(16), range(16)], {"files", "names", "sizes", "contents"}),
    ],
)
def test_changed_files_say_which_field_differs(dataset, files, fields):
    saved, current = dataset(range(16)).fingerprint(), dataset(*files).fingerprint()
    assert {name for name in saved if saved[name] != current[name]} == fields | {"sha256"}
