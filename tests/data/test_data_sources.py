"""Which files are read, in which order: folders as OLMo-core users have them."""

from __future__ import annotations

import gzip
import random

import numpy as np
import pytest

from trainer.config import DataConfig
from trainer.data.dataset import TokenDataset
from trainer.data.errors import DataError, SourceNotFoundError
from trainer.data.sources import list_sources


def names(tmp_path, **config) -> list[str]:
    return [str(source.path.relative_to(tmp_path)) for source in list_sources(DataConfig(**config))]


@pytest.fixture
def olmo_folder(tmp_path):
    """Nested folders with parts, metadata beside them and another tool's manifest."""
    for name in ("dclm/part-01-00000.npy", "dclm/part-00-00000.npy", "code/py/part-0-00000.npy", "code-2/part-9.npy"):
        path = tmp_path / "preprocessed" / "allenai/dolma3-tokenizer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.arange(40, dtype="<u4").tofile(path)
        with gzip.open(path.with_suffix(".csv.gz"), "wt") as file:
            file.write("0,40\n")
    (tmp_path / "preprocessed/allenai/dolma3-tokenizer/dclm/manifest.json").write_text('{"made_by": "dolma"}')
    return tmp_path / "preprocessed"


EXPECTED = ["code-2/part-9.npy", "code/py/part-0-00000.npy", "dclm/part-00-00000.npy", "dclm/part-01-00000.npy"]


def test_a_nested_folder_gives_its_token_files_sorted_as_text(olmo_folder):
    base = olmo_folder / "allenai/dolma3-tokenizer"
    assert names(base, paths=[str(base)]) == EXPECTED
    assert names(base, paths=[f"{base}/**/*.npy"]) == EXPECTED
    assert names(base, paths=[f"{base}/dclm/part-*.npy"]) == EXPECTED[2:]


def test_it_trains_as_it_is(olmo_folder):
    config = DataConfig(paths=[str(olmo_folder)], sequence_length=8)
    data = TokenDataset(config, 100352, 4)
    assert (data.files.dtype.name, data.files.eos_id, data.instances) == ("uint32", 100257, 20)
    assert sorted(data.batch(0).tokens[:, 0].tolist())[0] in range(0, 40, 8)


def test_a_mix_begins_at_its_base_and_keeps_labels(olmo_folder, tmp_path):
    mix = tmp_path / "elsewhere" / "OLMo-mix.txt"
    mix.parent.mkdir()
    mix.write_text(
        "dclm,preprocessed/{TOKENIZER}/dclm/part-00-00000.npy\ncode,preprocessed/{TOKENIZER}/code-2/part-9.npy\n"
    )
    config = {"mix": str(mix), "mix_tokenizer": "allenai/dolma3-tokenizer"}
    found = list_sources(DataConfig(**config, mix_base=str(tmp_path)))
    assert [(source.label, source.path.name) for source in found] == [
        ("dclm", "part-00-00000.npy"),
        ("code", "part-9.npy"),
    ]
    with pytest.raises(SourceNotFoundError, match=r"line 1, doesn't exist; relative paths begin at the mix file"):
        list_sources(DataConfig(**config))


def test_files_are_permuted_as_olmo_core_permutes_them(olmo_folder):
    base = olmo_folder / "allenai/dolma3-tokenizer"
    order = list(range(4))
    random.Random(1337).shuffle(order)
    assert names(base, paths=[str(base)], source_permutation_seed=1337) == [EXPECTED[i] for i in order]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("s3://bucket/part.npy", DataError, "is a URL: mount it"),
        ("{}/nothing-*.npy", DataError, "matches no token file"),
        ("{}/absent", SourceNotFoundError, "doesn't exist"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path, path, error, message):
    with pytest.raises(error, match=message):
        list_sources(DataConfig(paths=[path.format(tmp_path)]))


def test_wild_characters_of_a_shell_are_plain_ones_here(tmp_path):
    np.arange(4, dtype="u1").tofile(tmp_path / "a[1]-0.npy")
    np.arange(4, dtype="u1").tofile(tmp_path / "a1-0.npy")
    assert names(tmp_path, paths=[f"{tmp_path}/a[1]-*.npy"]) == ["a[1]-0.npy"]


def test_numpys_header_is_refused_and_the_way_out_named(tmp_path):
    np.save(tmp_path / "saved.npy", np.arange(64, dtype="<u2"))
    with pytest.raises(DataError, match=r"saved\.npy has NumPy's header.*astype\('uint16'\)\.tofile"):
        TokenDataset(DataConfig(paths=[str(tmp_path / "saved.npy")], sequence_length=4), 258, 1)


def test_a_given_dtype_overrides_the_vocabularys(tmp_path):
    np.array([1, 2, 3, 4], dtype="<u4").tofile(tmp_path / "wide.npy")
    config = DataConfig(paths=[str(tmp_path / "wide.npy")], sequence_length=4, dtype="uint32")
    assert TokenDataset(config, 258, 1).batch(0).tokens.tolist() == [[1, 2, 3, 4]]
