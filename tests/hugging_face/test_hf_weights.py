"""Reading weights: every spelling, rows, and each way in which a folder or a file can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import hf_parity as parity
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint.slices import Slice
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.names import olmo_core_names
from trainer.hugging_face.weights import StoredWeights
from trainer.model.config import GatedDeltaNetSpec
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

INDEX = "model.safetensors.index.json"


def holds(path: Path, model: HybridModel) -> bool:
    weights = StoredWeights.open(path, model.spec)
    return all(torch.equal(weights.read(name), tensor) for name, tensor in model.state_dict().items())


def save(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_export_fused_and_saved_by_transformers_all_come_back(folder: Path, tiny: HybridModel, tmp_path: Path) -> None:
    """save_pretrained writes legacy spellings and cuts the convolution in three equal parts."""
    assert holds(folder, tiny)
    assert holds(save(tmp_path / "fused.safetensors", parity.fused_state(tiny)), tiny)
    _, theirs = parity.pair(tiny.spec)
    theirs.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved["model.layers.0.linear_attn.q_conv1d.weight"].shape[0] == 32
    assert holds(tmp_path / "saved", tiny)


def test_spelling_of_olmo_cores_exporter_is_accepted(tiny: HybridModel, tmp_path: Path) -> None:
    spelled = {}
    for name, tensor in parity.released_state(tiny).items():
        name = name.replace("linear_attn.o_proj", "linear_attn.out_proj")
        spelled[name.replace("linear_attn.o_norm", "linear_attn.norm")] = tensor
    assert holds(save(tmp_path / "out_proj.safetensors", spelled), tiny)


@pytest.mark.parametrize("name", ["olmo_hybrid_tiny", "olmo3_1m"])
def test_olmo_cores_names_are_read_from_safetensors_and_from_torch_files(name: str, tmp_path: Path) -> None:
    model = parity.random_model(model_config(name))
    state = model.state_dict()
    core = {theirs: state[ours] for ours, theirs in olmo_core_names(model.spec).items()}
    assert {"embeddings.weight", "lm_head.norm.weight", "lm_head.w_out.weight"} < core.keys()
    assert {"blocks.3.attention.w_out.weight", "blocks.3.attention_norm.weight", "blocks.3.feed_forward.w2.weight"} < (
        core.keys()
    )
    core = {name: tensor.unsqueeze(1) if "conv1d" in name else tensor for name, tensor in core.items()}
    torch.save(core, tmp_path / "model.pt")
    assert holds(tmp_path / "model.pt", model)
    assert holds(save(tmp_path / "core.safetensors", core), model)


def test_olmo_cores_first_hybrid_names_are_read(tiny: HybridModel, tmp_path: Path) -> None:
    state, core = tiny.state_dict(), {}
    delta_net = tuple(
        f"blocks.{i}.attention" for i, b in enumerate(tiny.spec.blocks) if isinstance(b[0].op, GatedDeltaNetSpec)
    )
    for ours, theirs in olmo_core_names(tiny.spec).items():
        if theirs.startswith(delta_net):
            theirs = theirs.replace("attention_norm", "fla_norm").replace("attention.w_out.", "fla.inner.o_proj.")
            for letter in "qkvabg":
                theirs = theirs.replace(f"attention.w_{letter}.", f"fla.inner.{letter}_proj.")
            theirs = theirs.replace(".attention.", ".fla.inner.")
        core[theirs] = state[ours]
    assert {"blocks.0.fla.inner.g_proj.weight", "blocks.0.fla.inner.A_log"} < core.keys()
    assert holds(save(tmp_path / "core.safetensors", core), tiny)


def test_rows_are_those_of_the_whole(folder: Path, tiny: HybridModel, tmp_path: Path) -> None:
    """Also of a convolution that is stored in other pieces: rows of v lie in what is called q, k and v there."""
    _, theirs = parity.pair(tiny.spec)
    theirs.save_pretrained(tmp_path / "saved")
    for path in (folder, tmp_path / "saved"):
        weights = StoredWeights.open(path, tiny.spec)
        for name, tensor in tiny.state_dict().items():
            for begin, length in ((0, 1), (5, 0), (len(tensor) // 3, len(tensor) // 2)):
                assert torch.equal(weights.read(name, Slice(begin, length)), tensor[begin : begin + length]), name


def test_missing_unknown_and_misshapen_weights_are_named(tiny: HybridModel, tmp_path: Path) -> None:
    state = parity.released_state(tiny)
    del state["model.layers.0.linear_attn.A_log"]
    state["model.layers.0.linear_attn.D"] = torch.zeros(2)
    state["lm_head.weight"] = torch.zeros(3, 32)
    path = save(tmp_path / "model.safetensors", state)
    with pytest.raises(HuggingFaceError, match="do not fit the model") as caught:
        StoredWeights.open(tmp_path, tiny.spec)
    message = str(caught.value)
    assert str(path.parent) in message
    assert "missing model.layers.0.linear_attn.A_log" in message
    assert "unknown model.layers.0.linear_attn.D" in message
    assert "lm_head.weight has shape [3, 32], the model [384, 32]" in message


def test_convolutions_of_other_widths_are_refused(tiny: HybridModel, tmp_path: Path) -> None:
    fused = parity.fused_state(tiny)
    fused["model.layers.1.linear_attn.conv1d.weight"] = torch.zeros(90, 1, 4)
    with pytest.raises(HuggingFaceError, match=r"layers\.1\.linear_attn\.conv1d\.weight has shape \[90, 1, 4\]"):
        StoredWeights.open(save(tmp_path / "a.safetensors", fused), tiny.spec)
    swapped = parity.released_state(tiny)  # 96 channels together, but neither the model's cut nor three equal ones
    swapped["model.layers.1.linear_attn.q_conv1d.weight"] = torch.zeros(48, 1, 4)
    swapped["model.layers.1.linear_attn.v_conv1d.weight"] = torch.zeros(24, 1, 4)
    with pytest.raises(HuggingFaceError, match=r"q_conv1d\.weight has shape \[48, 1, 4\], the model \[24, 4\]"):
        StoredWeights.open(save(tmp_path / "b.safetensors", swapped), tiny.spec)


def test_one_parameter_in_two_spellings_is_refused(tiny: HybridModel, tmp_path: Path) -> None:
    state = parity.released_state(tiny)
    state["model.layers.0.linear_attn.out_proj.weight"] = state["model.layers.0.linear_attn.o_proj.weight"].clone()
    with pytest.raises(HuggingFaceError, match="are the same parameter"):
        StoredWeights.open(save(tmp_path / "model.safetensors", state), tiny.spec)


def test_an_index_that_names_an_absent_file_is_refused(folder: Path, tiny: HybridModel) -> None:
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(HuggingFaceError, match=f"names {lost.name}, which doesn't exist"):
        StoredWeights.open(folder, tiny.spec)


def test_an_index_and_files_that_disagree_are_refused(folder: Path, tiny: HybridModel) -> None:
    index = json.loads((folder / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(each for each in index["weight_map"].values() if each != file)
    for changed, said in (
        ({**index["weight_map"], name: other}, "which the index doesn't have there"),
        ({**index["weight_map"], "model.extra.weight": file}, "which doesn't hold it"),
        ({**index["weight_map"], name: "../elsewhere.safetensors"}, "no file of this folder"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(HuggingFaceError, match=said):
            StoredWeights.open(folder, tiny.spec)
    for broken, said in (("{", "is no JSON"), ("[]", "is no JSON object"), ("{}", "has no weight_map")):
        (folder / INDEX).write_text(broken)
        with pytest.raises(HuggingFaceError, match=said):
            StoredWeights.open(folder, tiny.spec)


@pytest.mark.parametrize("keep", [0, 4, 2000, -1])
def test_a_truncated_file_is_refused(folder: Path, tiny: HybridModel, keep: int) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HuggingFaceError, match=f"{path.name} is cut short or no safetensors file"):
        StoredWeights.open(folder, tiny.spec)


def test_weights_of_integers_are_refused(tiny: HybridModel, tmp_path: Path) -> None:
    state = parity.released_state(tiny)
    state["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    with pytest.raises(HuggingFaceError, match=r"model\.norm\.weight is of type I8"):
        StoredWeights.open(save(tmp_path / "model.safetensors", state), tiny.spec)


def test_a_value_that_is_not_finite_is_refused_when_it_is_read(tiny: HybridModel, tmp_path: Path) -> None:
    state = parity.released_state(tiny)
    state["model.norm.weight"] = torch.full((32,), float("inf"))
    weights = StoredWeights.open(save(tmp_path / "model.safetensors", state), tiny.spec)
    with pytest.raises(HuggingFaceError, match=r"model\.norm\.weight holds a value that is not finite"):
        weights.read("norm.weight")


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


def test_pickles_are_never_run(tiny: HybridModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = tmp_path / "pytorch_model.bin"
    bomb.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(HuggingFaceError, match=r"pytorch_model\.bin, a pickle, which could run any code"):
        StoredWeights.open(tmp_path, tiny.spec)
    with pytest.raises(HuggingFaceError, match="is no torch file of tensors alone"):
        StoredWeights.open(bomb, tiny.spec)
    torch.save({"blocks.0": Bomb()}, bomb)
    with pytest.raises(HuggingFaceError, match="is no torch file of tensors alone"):
        StoredWeights.open(bomb, tiny.spec)
    torch.save({"step": 3}, bomb)
    with pytest.raises(HuggingFaceError, match="is no state dict"):
        StoredWeights.open(bomb, tiny.spec)
    assert "boom" not in capsys.readouterr().out


def test_places_that_hold_no_weights_say_so(tiny: HybridModel, tmp_path: Path) -> None:
    with pytest.raises(HuggingFaceError, match="doesn't exist"):
        StoredWeights.open(tmp_path / "nowhere", tiny.spec)
    with pytest.raises(HuggingFaceError, match="holds neither"):
        StoredWeights.open(tmp_path, tiny.spec)
    (tmp_path / "model_and_optim").mkdir()
    (tmp_path / "model_and_optim" / ".metadata").write_bytes(b"")
    with pytest.raises(HuggingFaceError, match="distributed checkpoint of OLMo-core"):
        StoredWeights.open(tmp_path, tiny.spec)
