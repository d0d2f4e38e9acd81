"""`config.json` and `generation_config.json`, both ways. Imports no torch, so that a configuration is checked at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.hugging_face.errors import HuggingFaceError
from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, MixerSpec, ModelSpec, SublayerSpec, SwiGLUSpec

CONFIG = "config.json"
_OLMO_HYBRID, _OLMO3 = "OlmoHybridForCausalLM", "Olmo3ForCausalLM"
_CLASS_OF_TYPE = {"olmo_hybrid": _OLMO_HYBRID, "olmo3": _OLMO3}
# What transformers 5.23 takes for a key that is not there.
_DEFAULT_NORM_EPS = {_OLMO_HYBRID: 1e-6, _OLMO3: 1e-5}
_DEFAULT_ROPE_THETA = {_OLMO_HYBRID: 10_000.0, _OLMO3: 500_000.0}
_DEFAULT_WINDOW = 4096
_DEFAULT_CONV_WIDTH = 4
# Settings that the models here don't have, with the only value that means the same computation.
_FIXED: dict[str, Any] = {"attention_bias": False, "tie_word_embeddings": False, "hidden_act": "silu"}


@dataclass(frozen=True)
class TextSettings:
    """What a folder says beside the model: the longest text in tokens, and special tokens (None: there is none)."""

    max_position_embeddings: int
    eos_token_id: int | None = None
    pad_token_id: int | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises HuggingFaceError."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise HuggingFaceError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise HuggingFaceError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise HuggingFaceError(f"{path} is no JSON object")
    return value


def to_config(spec: ModelSpec, text: TextSettings) -> dict[str, Any]:
    """The content of `config.json`, dtype aside, for the transformers class that computes the same.

    RoPE or its absence is always written out: without `rope_parameters` transformers takes a theta of its own.

    Raises HuggingFaceError: no class can express the model.
    """
    mixers = {type(block[0].op) for block in spec.blocks}
    specific = _olmo3(spec) if mixers == {AttentionSpec} else _olmo_hybrid(spec)
    return {
        **specific,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": len(spec.blocks),
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm_eps,
        "attention_bias": False,
        "max_position_embeddings": text.max_position_embeddings,
        "bos_token_id": None,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "tie_word_embeddings": False,
    }


def generation_config(text: TextSettings) -> dict[str, Any]:
    """The content of `generation_config.json`."""
    ids = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    return {"_from_model_config": True, **{name: token for name, token in ids.items() if token is not None}}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    """The model that transformers would build from a `config.json`. Raises HuggingFaceError for one that isn't ours."""
    kind = _class_of(config)
    _refuse_unknown_settings(config)
    layers, d_model = _integer(config, "num_hidden_layers"), _integer(config, "hidden_size")
    mlp = SwiGLUSpec(_integer(config, "intermediate_size"))
    sublayers: list[SublayerSpec] = []
    for layer_type in _layer_types(config, kind, layers):
        mixer = _mixer(config, kind, layer_type, d_model)
        placement = "pre" if isinstance(mixer, GatedDeltaNetSpec) else "post"
        sublayers += [SublayerSpec(mixer, placement), SublayerSpec(mlp, placement)]
    norm_eps = float(config.get("rms_norm_eps", _DEFAULT_NORM_EPS[kind]))
    return ModelSpec(d_model, _integer(config, "vocab_size"), tuple(sublayers), norm_eps)


def text_settings(config: Mapping[str, Any]) -> TextSettings:
    """Those of a `config.json`. Of several tokens that end a text the first counts."""
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    return TextSettings(_integer(config, "max_position_embeddings"), eos, config.get("pad_token_id"))


def contradictions(config: Mapping[str, Any], spec: ModelSpec, allowed: tuple[str, ...] = ()) -> list[str]:
    """What a `config.json` says otherwise than the model, in its own words; keys in `allowed` may differ.

    Raises HuggingFaceError for a configuration that isn't ours, or a model that no class can express.
    """
    any_text = TextSettings(0)
    theirs, ours = to_config(from_config(config), any_text), to_config(spec, any_text)
    return [
        f"{key} is {theirs.get(key)} there, {ours.get(key)} in the model"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and key not in allowed
    ]


def check_config(folder: Path, spec: ModelSpec, allowed: tuple[str, ...]) -> None:
    """Raise HuggingFaceError where the `config.json` of `folder` contradicts the model, but for the allowed keys."""
    problems = contradictions(read_json(folder / CONFIG), spec, allowed)
    if problems:
        raise HuggingFaceError(f"{folder / CONFIG} contradicts the model: {'; '.join(problems)}")


def _olmo_hybrid(spec: ModelSpec) -> dict[str, Any]:
    attention, delta_net, mlp = _olmo_hybrid_ops(spec)
    return {
        "architectures": [_OLMO_HYBRID],
        "model_type": "olmo_hybrid",
        "intermediate_size": mlp.hidden_dim,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "layer_types": [_layer_type(block) for block in spec.blocks],
        "linear_num_key_heads": delta_net.heads,
        "linear_num_value_heads": delta_net.heads,
        "linear_key_head_dim": delta_net.key_dim,
        "linear_value_head_dim": delta_net.value_dim,
        "linear_conv_kernel_dim": delta_net.conv_width,
        "linear_allow_neg_eigval": delta_net.negative_eigenvalues,
        "rope_parameters": {"rope_theta": attention.rope_theta, "rope_type": "default"},
    }


def _olmo3(spec: ModelSpec) -> dict[str, Any]:
    _require_blocks(spec, _OLMO3, {AttentionSpec: "post"})
    attention = {block[0].op for block in spec.blocks}
    windows = {op.window for op in attention} - {None}
    shapes = {(op.heads, op.head_dim, op.rope_theta) for op in attention}
    if len(shapes) != 1 or len(windows) > 1:
        raise HuggingFaceError(f"{_OLMO3} has one kind of attention, with one window at most")
    heads, head_dim, rope_theta = shapes.pop()
    if heads * head_dim != spec.d_model or rope_theta is None:
        raise HuggingFaceError(f"{_OLMO3} has heads that make up d_model, and RoPE")
    rope = {"rope_theta": rope_theta, "rope_type": "default"}
    return {
        "architectures": [_OLMO3],
        "model_type": "olmo3",
        "intermediate_size": _one_mlp(spec, _OLMO3).hidden_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "layer_types": [_layer_type(block) for block in spec.blocks],
        "sliding_window": windows.pop() if windows else _DEFAULT_WINDOW,
        "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
    }


def _olmo_hybrid_ops(spec: ModelSpec) -> tuple[AttentionSpec, GatedDeltaNetSpec, SwiGLUSpec]:
    """The one attention, Gated DeltaNet and SwiGLU that an Olmo Hybrid is made of."""
    _require_blocks(spec, _OLMO_HYBRID, {AttentionSpec: "post", GatedDeltaNetSpec: "pre"})
    ops = {block[0].op for block in spec.blocks}
    attention = [op for op in ops if isinstance(op, AttentionSpec)]
    delta_net = [op for op in ops if isinstance(op, GatedDeltaNetSpec)]
    if not len(attention) == len(delta_net) == 1:
        raise HuggingFaceError(f"{_OLMO_HYBRID} has one kind each of attention and Gated DeltaNet")
    if attention[0].window is not None or attention[0].heads * attention[0].head_dim != spec.d_model:
        raise HuggingFaceError(f"{_OLMO_HYBRID} has full attention whose heads make up d_model")
    if delta_net[0].output_norm_eps != GatedDeltaNetSpec.output_norm_eps:
        raise HuggingFaceError(f"{_OLMO_HYBRID} has an output norm with eps {GatedDeltaNetSpec.output_norm_eps}")
    return attention[0], delta_net[0], _one_mlp(spec, _OLMO_HYBRID)


def _require_blocks(spec: ModelSpec, kind: str, placements: dict[type, str]) -> None:
    for block in spec.blocks:
        found = [(type(sublayer.op), sublayer.norm_placement) for sublayer in block]
        placement = placements.get(type(block[0].op))
        if placement is None or found != [(type(block[0].op), placement), (SwiGLUSpec, placement)]:
            wanted = " and ".join(
                f"{name.__name__.removesuffix('Spec')} ({where}-norm)" for name, where in placements.items()
            )
            raise HuggingFaceError(f"{kind} has blocks of a mixer, {wanted}, and a SwiGLU with its norm placed alike")


def _one_mlp(spec: ModelSpec, kind: str) -> SwiGLUSpec:
    mlps = {sublayer.op for sublayer in spec.sublayers if isinstance(sublayer.op, SwiGLUSpec)}
    if len(mlps) != 1:
        raise HuggingFaceError(f"{kind} has one kind of SwiGLU")
    return mlps.pop()


def _layer_type(block: tuple[SublayerSpec, ...]) -> str:
    op = block[0].op
    if isinstance(op, GatedDeltaNetSpec):
        return "linear_attention"
    return "full_attention" if op.window is None else "sliding_attention"


def _class_of(config: Mapping[str, Any]) -> str:
    kind = _CLASS_OF_TYPE.get(str(config.get("model_type")))
    if kind is None:
        raise HuggingFaceError(
            f"model_type is {config.get('model_type')!r}; this trainer has {' and '.join(_CLASS_OF_TYPE)}"
        )
    return kind


def _refuse_unknown_settings(config: Mapping[str, Any]) -> None:
    heads = config.get("num_attention_heads")
    fixed = {**_FIXED, "num_key_value_heads": heads}
    if "linear_num_key_heads" in config:
        fixed["linear_num_value_heads"] = config["linear_num_key_heads"]
    for key, value in fixed.items():
        if config.get(key) is not None and config[key] != value:
            raise HuggingFaceError(f"{key} is {config[key]}; the models here have {value}")


def _layer_types(config: Mapping[str, Any], kind: str, layers: int) -> list[str]:
    other = "linear_attention" if kind == _OLMO_HYBRID else "sliding_attention"
    given = config.get("layer_types")
    types = given or ["full_attention" if layer % 4 == 3 else other for layer in range(layers)]
    if len(types) != layers or set(types) - {other, "full_attention"}:
        raise HuggingFaceError(f"layer_types must name {layers} layers, each {other} or full_attention")
    return types


def _mixer(config: Mapping[str, Any], kind: str, layer_type: str, d_model: int) -> MixerSpec:
    heads = _integer(config, "num_attention_heads")
    if layer_type == "linear_attention":
        delta_heads = config.get("linear_num_key_heads") or heads
        key_dim = config.get("linear_key_head_dim") or int(0.75 * d_model / delta_heads)
        return GatedDeltaNetSpec(
            delta_heads,
            key_dim,
            config.get("linear_value_head_dim") or 2 * key_dim,
            config.get("linear_conv_kernel_dim", _DEFAULT_CONV_WIDTH),
            config.get("linear_allow_neg_eigval", True),
        )
    window = config.get("sliding_window", _DEFAULT_WINDOW) if layer_type == "sliding_attention" else None
    return AttentionSpec(heads, d_model // heads, _rope_theta(config, kind, layer_type), window)


def _rope_theta(config: Mapping[str, Any], kind: str, layer_type: str) -> float | None:
    """None for NoPE. Knows transformers 5's `rope_parameters`, nested by layer type or not, and 4's `rope_theta`."""
    if config.get("rope_scaling"):
        raise HuggingFaceError(f"rope_scaling is {config['rope_scaling']}; the models here have none")
    default = config.get("rope_theta", _DEFAULT_ROPE_THETA[kind])
    rope = config.get("rope_parameters") or {}
    rope = rope.get(layer_type, rope)
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise HuggingFaceError(f"rope_parameters are {rope}; the models here have the default type over whole heads")
    theta = rope.get("rope_theta", default)
    return None if theta is None else float(theta)


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise HuggingFaceError(f"{key} must be a positive integer, not {value!r}")
    return value
