"""Small token files whose every token is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.config import DataConfig
from trainer.data.dataset import TokenDataset

EOS = 256


@pytest.fixture
def token_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes tokens as a headerless uint16 file, returns its path."""

    def write(tokens, name: str = "part-000.npy", dtype: str = "<u2") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.asarray(tokens, dtype=dtype).tofile(path)
        return path

    return write


@pytest.fixture
def dataset(token_file) -> Callable[..., TokenDataset]:
    """A dataset over files of the given tokens, vocabulary 258."""

    def build(*contents, batch_sequences: int = 2, sequence_length: int = 4, **config) -> TokenDataset:
        paths = [str(token_file(tokens, f"part-{i:03d}.npy")) for i, tokens in enumerate(contents)]
        given = {"paths": paths, "sequence_length": sequence_length, "seed": 7, **config}
        return TokenDataset(DataConfig(**given), 258, batch_sequences)

    return build
