"""A shard's file: the same to safetensors' own reader, digested block by block, and found damaged in any block."""

from __future__ import annotations

import threading

import pytest
import torch
from checkpoint_states import make_state, save_all
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from trainer.checkpoint.attempt import SaveAttempt, ShardContent
from trainer.checkpoint.blocks import FileSource, MemorySource, Target, prove_blocks, read_targets, write_blocks
from trainer.checkpoint.digest import bytes_digest, tree_digest
from trainer.checkpoint.errors import CheckpointDamagedError, SaveCancelledError, SaveRefusedError
from trainer.checkpoint.folders import PathFolder
from trainer.checkpoint.image import ShardTensor, plan_image
from trainer.checkpoint.staging import Staging

RUNNING = threading.Event()
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def stage(tensors: dict[str, torch.Tensor]):
    pieces = {name: ShardTensor(tensor, tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    image = Staging().begin(pieces, RUNNING)
    image.wait(RUNNING)
    return image


def read_by_safetensors(path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text('ab.é"\\', min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_safetensors_reads_what_was_staged(tmp_path_factory, described):
    tensors = {name: (torch.randn(shape) * 3).to(dtype) for name, (dtype, shape) in described.items()}
    path = tmp_path_factory.mktemp("image") / "file"
    path.write_bytes(stage(tensors).memory)
    found = read_by_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_safetensors_reads_committed_shards(tmp_path):
    save_all(tmp_path, 1, shards=1)
    found = read_by_safetensors(tmp_path / "step-00000001" / "shard-00000-of-00001.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in make_state(1).items())


def test_tensors_begin_on_a_page():
    plan = plan_image({"a": ShardTensor(torch.ones(3), (3,), 0)})
    assert plan.spans["a"] == (4096, 12)
    assert plan.size == 4096 + 12


def written(tmp_path, size: int, block_bytes: int):
    """A file of that size, and its sidecar."""
    content = torch.arange(size, dtype=torch.int64).to(torch.uint8).numpy().tobytes()
    save = SaveAttempt(1, 1, 0, 1)
    source = MemorySource(memoryview(content))
    blocks = write_blocks(tmp_path / save.file, source, block_bytes, RUNNING)
    shard = ShardContent(source, {}, block_bytes=block_bytes)
    return content, shard.sidecar(save, blocks)


def test_digests_are_of_the_blocks_in_order(tmp_path):
    content, sidecar = written(tmp_path, 1000, 256)
    assert (tmp_path / sidecar.file).read_bytes() == content
    assert list(sidecar.blocks) == [bytes_digest(content[at : at + 256]) for at in (0, 256, 512, 768)]
    assert sidecar.digest == tree_digest(sidecar.blocks)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_span_is_read_and_a_flip_is_found_where_it_is_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("blocks")
    size, block_bytes = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 300))
    content, sidecar = written(folder, size, block_bytes)
    begin = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(begin + 1, size))
    into = bytearray(end - begin)
    read_targets(folder, sidecar, [Target(begin, memoryview(into))], threads=2)
    assert bytes(into) == content[begin:end]

    flipped = data.draw(st.integers(0, size - 1))
    damaged = bytearray(content)
    damaged[flipped] ^= 1
    (folder / sidecar.file).write_bytes(damaged)
    touched = range(begin // block_bytes, (end - 1) // block_bytes + 1)
    if flipped // block_bytes in touched:
        with pytest.raises(CheckpointDamagedError, match="has another digest in bytes"):
            read_targets(folder, sidecar, [Target(begin, memoryview(into))])
    else:
        read_targets(folder, sidecar, [Target(begin, memoryview(into))])
    with pytest.raises(CheckpointDamagedError, match="has another digest"):
        prove_blocks(PathFolder(folder), sidecar)


def test_a_file_cut_short_is_said_to_end(tmp_path):
    content, sidecar = written(tmp_path, 1000, 256)
    (tmp_path / sidecar.file).write_bytes(content[:300])
    with pytest.raises(CheckpointDamagedError, match="ends at byte 300 of 1000"):
        read_targets(tmp_path, sidecar, [Target(290, memoryview(bytearray(20)))])


def test_a_file_that_changed_since_is_not_passed_on(tmp_path):
    content, sidecar = written(tmp_path, 1000, 256)
    (tmp_path / sidecar.file).write_bytes(content[:-1] + b"x")
    source = FileSource(tmp_path / sidecar.file)
    shard = ShardContent(source, {}, sidecar.blocks, 256)
    blocks = write_blocks(tmp_path / "copy", source, 256, RUNNING)
    source.close()
    with pytest.raises(SaveRefusedError, match="in the local tier is not what was written there"):
        shard.sidecar(SaveAttempt(1, 1, 0, 1), blocks)


def test_a_cancelled_write_ends(tmp_path):
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(SaveCancelledError):
        write_blocks(tmp_path / "file", MemorySource(memoryview(bytes(100))), 10, cancelled)


def test_the_memory_is_used_again_only_when_it_is_released():
    staging, cancelled = Staging(), threading.Event()
    pieces = {"a": ShardTensor(torch.ones(3), (3,), 0)}
    first = staging.begin(pieces, cancelled)
    threading.Timer(0.05, cancelled.set).start()
    with pytest.raises(SaveCancelledError):
        staging.begin(pieces, cancelled)
    first.release()
    second = staging.begin({"a": ShardTensor(torch.zeros(9), (9,), 0)}, RUNNING)
    assert second.plan.spans["a"][1] == 36
