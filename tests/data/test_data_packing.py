"""Packing: whole documents, best fit, the same on all machines; label masks of SFT data."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.data import shared_cache
from trainer.data.dataset import TokenDataset, check_fingerprint
from trainer.data.errors import DataError, DataMismatchError
from trainer.data.packing import document_spans, pack

EOS, PAD = 256, 257
T = 8


def best_fit_by_definition(lengths: list[int], capacity: int) -> list[list[int]]:
    """Longest first; the fullest instance with room; of equals, the one that has been so full for longest."""
    instances: list[list[int]] = []
    waiting: list[tuple[int, int]] = []  # (room, instance), oldest first
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [pair for pair in waiting if pair[0] >= lengths[document]]
        if fitting:
            chosen = min(fitting, key=lambda pair: pair[0])
            waiting.remove(chosen)
        else:
            chosen = (capacity, len(instances))
            instances.append([])
        instances[chosen[1]].append(document)
        if chosen[0] > lengths[document]:
            waiting.append((chosen[0] - lengths[document], chosen[1]))
    return instances


@given(lengths=st.lists(st.integers(1, 20), max_size=60))
def test_it_is_best_fit_decreasing(lengths):
    assert pack(np.array(lengths, dtype=np.int64), 20) == best_fit_by_definition(lengths, 20)


@given(tokens=st.lists(st.integers(0, 3), max_size=60), strategy=st.sampled_from(["truncate", "fragment"]))
def test_spans_are_the_documents(tokens, strategy):
    expected, begin = [], 0
    for at, token in enumerate(tokens):
        if token == 0:
            pieces = range(begin, at + 1, T) if strategy == "fragment" else [begin]
            expected += [[piece, min(piece + T, at + 1)] for piece in pieces]
            begin = at + 1
    assert document_spans(np.array(tokens), 0, T, strategy).tolist() == expected


@pytest.fixture
def sft(tmp_path):
    """Two parts in open-instruct's layout: documents [n, n, ..., EOS], of which the first two tokens are the prompt."""
    folder = tmp_path / "sft"
    folder.mkdir()
    for part, lengths in enumerate(([3, 6, 5, 2], [8, 4, 4])):
        tokens, mask = [], []
        for number, length in enumerate(lengths):
            tokens += [10 * part + number] * (length - 1) + [EOS]
            mask += [False] * 2 + [True] * (length - 2)
        np.array(tokens, dtype="<u2").tofile(folder / f"token_ids_part_{part:04d}.npy")
        np.array(mask, dtype=bool).tofile(folder / f"labels_mask_part_{part:04d}.npy")
    return folder


def packed(folder, cache=None, batch=2, **config) -> TokenDataset:
    given = {"paths": [str(folder)], "sequence_length": T, "packing": "best_fit", "seed": 3, **config}
    return TokenDataset(DataConfig(**given), 258, batch, cache)


def test_whole_documents_are_packed_and_padded(sft):
    data = packed(sft, batch=4)
    rows = {tuple(row) for row in data.batch(0).tokens.tolist()}
    assert rows == {
        (1, 1, 1, 1, 1, EOS, 3, EOS),
        (2, 2, 2, 2, EOS, 0, 0, EOS),
        (10, 10, 10, 10, 10, 10, 10, EOS),
        (11, 11, 11, EOS, 12, 12, 12, EOS),
    }


def test_masked_tokens_and_padding_are_no_targets(sft):
    (sft / "token_ids_part_0001.npy").unlink()
    (sft / "labels_mask_part_0001.npy").unlink()
    np.array([1, 2, 3, EOS, 9], dtype="<u2").tofile(sft / "token_ids_part_0000.npy")  # 9: after the last EOS
    np.array([0, 1, 0, 1, 1], dtype=bool).tofile(sft / "labels_mask_part_0000.npy")
    batch = packed(sft, batch=1).batch(0)
    assert batch.tokens.tolist() == [[1, 2, 3, EOS, PAD, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[2, -100, EOS, -100, -100, -100, -100, -100]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert batch.loss_tokens == 2


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_the_loss_is_divided_alike_in_every_world(sft, packing):
    data = packed(sft, packing=packing)
    whole = data.batch(0)
    shares = [data.batch(0, rank, 2) for rank in range(2)]
    assert whole.loss_tokens == sum(share.loss_tokens for share in shares) == int((whole.targets != -100).sum())
    assert shares[0].loss_tokens == shares[1].loss_tokens


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(step=st.integers(0, 20), world=st.sampled_from([1, 2, 4]), packing=st.sampled_from(["none", "best_fit"]))
def test_a_batch_is_the_same_for_every_world(sft, step, world, packing):
    data = packed(sft, batch=4, packing=packing)
    whole = data.batch(step)
    shares = [data.batch(step, rank, world) for rank in range(world)]
    for name in ("tokens", "targets", "document_ids"):
        together = torch.stack([getattr(shares[i % world], name)[i // world] for i in range(4)])
        assert torch.equal(together, getattr(whole, name))


def test_windows_keep_their_masks(sft):
    data = packed(sft, packing="none", batch=4)
    batch = data.batch(0)
    tokens = np.concatenate([np.fromfile(sft / f"token_ids_part_{i:04d}.npy", "<u2")[:16] for i in range(2)])
    mask = np.concatenate([np.fromfile(sft / f"labels_mask_part_{i:04d}.npy", bool)[:16] for i in range(2)])
    expected = {
        tuple([int(tokens[i]) if mask[i] else -100 for i in range(begin + 1, begin + T)] + [-100])
        for begin in range(0, len(tokens), T)
    }
    assert {tuple(row) for row in batch.targets.tolist()} == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "labels_mask_part_0001.npy").write_bytes(b"\1" * 15), "has 15 entries for the 16 tokens"),
        (lambda f: (f / "labels_mask_part_0001.npy").unlink(), r"has a label mask beside it and .*0001\.npy has none"),
        (lambda f: np.save(f / "labels_mask_part_0001.npy", np.ones(16, bool)), "has NumPy's header"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error(sft, damage, message):
    damage(sft)
    with pytest.raises(DataError, match=message):
        packed(sft)


def test_masks_may_lie_elsewhere(sft, tmp_path):
    elsewhere = tmp_path / "masks"
    elsewhere.mkdir()
    for path in sorted(sft.glob("labels_mask*")):
        path.rename(elsewhere / path.name)
    without = packed(sft, batch=4).batch(0)
    given = packed(sft, batch=4, label_masks=[f"{elsewhere}/*.npy"]).batch(0)
    assert (given.targets != -100).sum() < (without.targets != -100).sum()
    with pytest.raises(DataError, match="names 1 files for 2 token files"):
        packed(sft, label_masks=[str(elsewhere / "labels_mask_part_0000.npy")])


def test_a_changed_packing_or_mask_is_refused_on_resume(sft):
    saved = packed(sft).fingerprint()
    check_fingerprint(saved, packed(sft).fingerprint())
    with pytest.raises(DataMismatchError, match="packing was"):
        check_fingerprint(saved, packed(sft, packing="none").fingerprint())
    mask = sft / "labels_mask_part_0000.npy"
    mask.write_bytes(b"\1" * mask.stat().st_size)
    with pytest.raises(DataMismatchError, match="label_masks was"):
        check_fingerprint(saved, packed(sft).fingerprint())


def test_without_an_eos_nothing_can_be_packed(tmp_path):
    np.arange(40, dtype="u1").tofile(tmp_path / "part.npy")
    with pytest.raises(DataError, match=r"set data\.eos_id"):
        TokenDataset(DataConfig(paths=[str(tmp_path)], sequence_length=T, packing="best_fit"), 200, 1)
    with pytest.raises(DataError, match="no document ends"):
        TokenDataset(DataConfig(paths=[str(tmp_path)], sequence_length=T, packing="best_fit", eos_id=99), 200, 1)


def test_packings_and_orders_are_computed_once_and_shared(sft, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.epochs.SHARED_FROM", 1)
    cache = tmp_path / "cache"
    fresh = packed(sft)
    first = packed(sft, cache)
    assert torch.equal(first.batch(0).tokens, fresh.batch(0).tokens)
    monkeypatch.setattr("trainer.data.packed_files.packed_index", None)
    monkeypatch.setattr("trainer.data.epochs.shuffled", None)
    again = packed(sft, cache)
    assert torch.equal(again.batch(1).tokens, fresh.batch(1).tokens)
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 2 + 1


def test_a_fingerprint_of_many_files_is_read_once_and_again_when_one_changes(sft, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.fingerprint._SHARED_FROM", 1)
    cache = tmp_path / "cache"
    plain = packed(sft).fingerprint()
    assert packed(sft, cache).fingerprint() == plain
    path = sft / "token_ids_part_0000.npy"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.data.fingerprint._edges_digest", None)
        assert packed(sft, cache).fingerprint() == plain
    tokens = np.fromfile(path, "<u2")
    tokens[0] = 77
    tokens.tofile(path)
    assert packed(sft, cache).fingerprint()["contents"] != plain["contents"]


def test_only_one_computes_while_the_others_wait(tmp_path):
    built = []
    gate = threading.Event()

    def build() -> np.ndarray:
        built.append(1)
        gate.wait(10)
        return np.arange(5)

    found: list[list[int]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(shared_cache.shared_array(tmp_path, "a", np.dtype("<u4"), build)[1:4].tolist())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(30)
    assert (found, built) == ([[1, 2, 3]] * 4, [1])


def test_a_cache_that_cannot_be_written_costs_memory_not_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    array = shared_cache.shared_array(tmp_path / "file", "a", np.dtype("<u4"), lambda: np.arange(5))
    assert array[1:4].tolist() == [1, 2, 3]
    assert "kept in memory" in capsys.readouterr().err


def test_a_cut_cache_file_is_an_error_that_names_it(tmp_path):
    array = shared_cache.shared_array(tmp_path, "a", np.dtype("<u4"), lambda: np.arange(5))
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(6)
    with pytest.raises(DataError, match="/a was cut; remove it"):
        array[0:4]
