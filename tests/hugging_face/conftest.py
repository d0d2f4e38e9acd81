from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_parity import random_model
from torch import Tensor

from trainer.hugging_face.configuration import TextSettings
from trainer.hugging_face.folder import FolderSettings, write_folder
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

TEXT = TextSettings(max_position_embeddings=256, eos_token_id=256, pad_token_id=257)


@pytest.fixture(autouse=True)
def _one_thread():
    """Bits are promised for one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> HybridModel:
    return random_model(model_config("olmo_hybrid_tiny"))


@pytest.fixture
def state(tiny: HybridModel) -> dict[str, Tensor]:
    return tiny.state_dict()


@pytest.fixture
def folder(tiny: HybridModel, tmp_path: Path) -> Path:
    """An export of `tiny` in several shards."""
    state = tiny.state_dict()
    settings = FolderSettings(dict.fromkeys(state, torch.float32), TEXT, shard_bytes=100_000)
    write_folder(tmp_path / "export", tiny.spec, lambda names: {name: state[name] for name in names}, settings)
    return tmp_path / "export"
