"""The copy from a GPU: what is saved is the state at the call, whatever the next update does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open

from trainer.checkpoint import staging as staging_module
from trainer.checkpoint.errors import SaveRefusedError
from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.manifest import CheckpointMeta
from trainer.checkpoint.outcomes import Committed
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.writer import AsyncWriter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
RUNNING = threading.Event()


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    return {
        f"weights.{index}": torch.randn(1000 + index, 999, device="cuda", generator=generator) for index in range(40)
    }


def pieces(tensors: dict[str, torch.Tensor]) -> dict[str, ShardTensor]:
    return {name: ShardTensor(tensor, tuple(tensor.shape), 0) for name, tensor in tensors.items()}


@pytest.fixture
def staging() -> Iterator[Staging]:
    memory = Staging()
    yield memory
    memory.close()


@pytest.mark.parametrize("room", [True, False])
def test_what_is_saved_is_the_state_before_the_update(tmp_path, monkeypatch, staging, room):
    monkeypatch.setattr(staging_module, "_CHUNK_BYTES", 1 << 20)
    if not room:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    for step in (1, 2, 3):
        tensors = state()
        before = {name: tensor.cpu() for name, tensor in tensors.items()}
        writer = AsyncWriter(tmp_path, 0, 1, 1, staging=staging)
        writer.save(step, pieces(tensors), CheckpointMeta(step, 1, 1))
        writer.wait_staged()
        for tensor in tensors.values():
            tensor.fill_(-1.0)
        torch.cuda.synchronize()
        assert writer.settle(60)
        assert [type(outcome) for outcome in writer.poll()] == [Committed]
        with safe_open(tmp_path / f"step-{step:08d}" / "shard-00000-of-00001.safetensors", "pt") as file:
            assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found_on_the_device(staging, value):
    tensors = state()
    tensors["weights.7"][-1, -1] = value
    image = staging.begin(pieces(tensors), RUNNING)
    staging.finish()
    with pytest.raises(SaveRefusedError, match=r"weights.7 is not finite"):
        image.wait(RUNNING)
    image.release()


def test_memory_gotten_ready_is_pinned_and_used(staging):
    tensors = state()
    staging.prepare(pieces(tensors))
    image = staging.begin(pieces(tensors), RUNNING)
    image.wait(RUNNING)
    assert image.view("weights.0").is_pinned()
    assert torch.equal(image.view("weights.0").view(torch.float32), tensors["weights.0"].cpu().reshape(-1))
    image.release()
