"""Any mesh reads what any mesh wrote, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_states import make_state, save_all, shard_state
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointMismatchError
from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.manifest import CheckpointMeta, StoredTensor
from trainer.checkpoint.reader import load, open_shards
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.writer import AsyncWriter


def load_shard(path, shards: int, shard: int) -> dict[str, ShardTensor]:
    """What a rank of another mesh asks for."""
    pieces = shard_state(make_state(), shards, shard)
    wanted = {name: Slice(piece.offset, len(piece.local)) for name, piece in pieces.items()}
    loaded = load(path, wanted, {name: piece.global_shape for name, piece in pieces.items()})
    return {name: ShardTensor(loaded[name], pieces[name].global_shape, pieces[name].offset) for name in wanted}


def whole(path) -> dict[str, torch.Tensor]:
    return load(path, dict.fromkeys(make_state()))


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("meshes", [(2, 1, 4), (1, 8, 3), (4, 2, 1)])
def test_resharding_in_steps_loses_no_bit(tmp_path, meshes):
    state = make_state(5)
    save_all(tmp_path / "0", 1, state, shards=meshes[0])
    for number, shards in enumerate(meshes[1:], 1):
        source = tmp_path / str(number - 1) / "step-00000001"
        writers = [AsyncWriter(tmp_path / str(number), shard, shards, 1) for shard in range(shards)]
        for shard, writer in enumerate(writers):
            writer.save(1, load_shard(source, shards, shard), CheckpointMeta(1, 1, 1))
        assert all(writer.wait(60) for writer in writers)
    assert_same(whole(tmp_path / str(len(meshes) - 1) / "step-00000001"), state)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    return {shards: save_all(root / str(shards), 1, shards=shards)[0].path for shards in (1, 2, 3, 5, 9)}


@settings(deadline=None, max_examples=80)
@given(data=st.data(), shards=st.sampled_from([1, 2, 3, 5, 9]), name=st.sampled_from(sorted(make_state())))
def test_any_slice_of_any_mesh(stored, data, shards, name):
    tensor = make_state(1)[name]
    begin = data.draw(st.integers(0, len(tensor)))
    length = data.draw(st.integers(0, len(tensor) - begin))
    loaded = load(stored[shards], {name: Slice(begin, length)})[name]
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor[begin : begin + length])


def test_a_tensor_without_dimensions_is_held_by_one_shard(tmp_path):
    writers = [AsyncWriter(tmp_path, shard, 2, 1) for shard in (0, 1)]
    writers[0].save(1, {"scale": ShardTensor(torch.tensor(2.5), (), 0)}, CheckpointMeta(1, 1, 1))
    writers[1].save(1, {}, CheckpointMeta(1, 1, 1))
    assert all(writer.wait(60) for writer in writers)
    path = tmp_path / "step-00000001"
    assert open_shards(path).tensors() == {"scale": StoredTensor((), "float32", 0, 1)}
    loaded = load(path, {"scale": None})["scale"]
    assert loaded.shape == ()
    assert loaded.item() == 2.5


def test_stored_tensors_say_global_shapes(stored):
    for path in stored.values():
        assert open_shards(path).tensors() == {
            name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), 0, len(tensor))
            for name, tensor in make_state().items()
        }


@pytest.mark.parametrize(
    ("wanted", "shapes", "message"),
    [
        ({"absent": None}, None, "holds no tensor absent"),
        ({"count": Slice(5, 5)}, None, r"count has shape \[9\], rows 5 to 10 are asked for"),
        ({"count": Slice(-1, 2)}, None, "rows -1 to 1"),
        ({"model.embed": None}, {"model.embed": (8, 5)}, r"model.embed has shape \[7, 5\], the model \[8, 5\]"),
    ],
)
def test_what_isnt_stored_is_refused(stored, wanted, shapes, message):
    with pytest.raises(CheckpointMismatchError, match=message):
        load(stored[2], wanted, shapes)


def test_an_unreadable_shard_names_the_file(tmp_path):
    [committed] = save_all(tmp_path, 1)
    (Path(committed.path) / "shard-00001-of-00002.safetensors").write_bytes(b"short")
    assert torch.equal(load(committed.path, {"count": Slice(0, 5)})["count"], torch.arange(5))
    with pytest.raises(CheckpointDamagedError, match=r"shard-00001-of-00002.safetensors"):
        load(committed.path, {"count": None})
