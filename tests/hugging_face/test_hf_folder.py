"""Exports: files, shards, names, types; whole or not at all; what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from trainer.hugging_face import folder as folder_module
from trainer.hugging_face.byte_tokenizer import byte_tokenizer_files
from trainer.hugging_face.configuration import TextSettings
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.folder import FolderSettings, plan_shards, write_folder
from trainer.hugging_face.weights import StoredWeights
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

TEXT = TextSettings(max_position_embeddings=256, eos_token_id=256, pad_token_id=257)


def write(out: Path, model: HybridModel, dtype: torch.dtype = torch.float32, **changes: object) -> list[str]:
    state = model.state_dict()
    settings = FolderSettings(dict.fromkeys(state, dtype), TEXT, **changes)
    return write_folder(out, model.spec, lambda names: {name: state[name] for name in names}, settings)


def test_transformers_loads_a_sharded_export_whole(folder: Path, tiny: HybridModel) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert {path.name for path in folder.glob("*.safetensors")} == files
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in tiny.parameters())
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert isinstance(loaded, transformers.OlmoHybridForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.arange(70)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, tiny(tokens), rtol=0, atol=1e-4)


def test_small_export_is_one_file_without_index(tmp_path: Path, tiny: HybridModel) -> None:
    files = write(tmp_path / "out", tiny, extra=byte_tokenizer_files())
    assert files == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip


def test_names_and_shapes_on_disk_are_the_released_ones(folder: Path) -> None:
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shape in (
        ("model.layers.0.linear_attn.q_conv1d.weight", [24, 1, 4]),
        ("model.layers.0.linear_attn.v_conv1d.weight", [48, 1, 4]),
        ("model.layers.3.post_feedforward_layernorm.weight", [32]),
    ):
        with safe_open(folder / names[name], framework="pt") as file:
            assert file.get_slice(name).get_shape() == shape
            assert file.metadata() == {"format": "pt"}


def test_bfloat16_export_is_the_rounded_weights(tmp_path: Path, tiny: HybridModel) -> None:
    write(tmp_path / "out", tiny, torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    weights = StoredWeights.open(tmp_path / "out", tiny.spec)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(weights.read(name), tensor.bfloat16())


def test_a_folder_that_is_there_is_kept(tmp_path: Path, tiny: HybridModel) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(HuggingFaceError, match="is there already; name another place, or say --overwrite"):
        write(out, tiny)
    assert (out / "thesis.txt").read_text() == "years of work"
    write(out, tiny, overwrite=True)
    assert not (out / "thesis.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_fills_up_leaves_the_old_export_and_nothing_else(
    tmp_path: Path, tiny: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", tiny)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "save_file", full)
    with pytest.raises(HuggingFaceError, match="No space left on device"):
        write(tmp_path / "out", tiny, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_value_that_is_not_finite_is_never_exported(tmp_path: Path, tiny: HybridModel) -> None:
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state["norm.weight"][3] = float("nan")
    settings = FolderSettings(dict.fromkeys(state, torch.float32), TEXT)
    with pytest.raises(HuggingFaceError, match=r"model\.norm\.weight holds a value that is not finite"):
        write_folder(tmp_path / "out", tiny.spec, lambda names: {name: state[name] for name in names}, settings)
    assert not list(tmp_path.iterdir())


def test_a_model_that_transformers_cannot_express_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    spec = model_config("olmo_hybrid_tiny", {"pattern": "GGGS"})

    def never(names: object) -> dict[str, Tensor]:
        raise AssertionError(names)

    with pytest.raises(HuggingFaceError, match="full attention"):
        write_folder(tmp_path / "out", spec, never, FolderSettings({"norm.weight": torch.float32}, TEXT))


def test_no_more_than_a_shard_is_asked_for_at_a_time(
    tmp_path: Path, tiny: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_READ_BYTES", 8_000)
    state, asked = tiny.state_dict(), []

    def read(names: list[str]) -> dict[str, Tensor]:
        asked.append(sum(state[name].nbytes for name in names))
        return {name: state[name] for name in names}

    largest = max(tensor.nbytes for tensor in state.values())
    write_folder(tmp_path / "out", tiny.spec, read, FolderSettings(dict.fromkeys(state, torch.float32), TEXT))
    assert max(asked) <= max(largest, 8_000)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 100))
def test_shards_hold_every_tensor_in_order_and_are_no_larger_than_they_must(sizes: list[int], limit: int) -> None:
    named = {str(index): size for index, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [name for shard in shards for name in shard] == list(named)
    for shard in shards:
        assert len(shard) == 1 or sum(named[name] for name in shard) <= limit


def test_byte_tokenizer_is_the_trainer_s(tmp_path: Path, tiny: HybridModel) -> None:
    write(tmp_path / "out", tiny, extra=byte_tokenizer_files())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Grüße, 世界\n\ttabs  and\x00bytes " + "".join(map(chr, range(32, 256)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257)
