"""What each parameter is called in released checkpoints and in OLMo-core's, and the other spellings in circulation."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.hugging_face.errors import HuggingFaceError
from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.count import parameter_shapes

_RELEASED_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_RELEASED_OP: dict[type, str] = {AttentionSpec: "self_attn", GatedDeltaNetSpec: "linear_attn", SwiGLUSpec: "mlp"}
_RELEASED_NORM = {
    ("pre", True): "input_layernorm",
    ("pre", False): "post_attention_layernorm",
    ("post", True): "post_attention_layernorm",
    ("post", False): "post_feedforward_layernorm",
}
# The first two by OLMo-core's exporter, which transformers leaves unloaded without an error; the others by
# save_pretrained of transformers 5.
_RELEASED_SPELLINGS = (
    (re.compile(r"\.linear_attn\.out_proj\."), ".linear_attn.o_proj."),
    (re.compile(r"\.linear_attn\.norm\."), ".linear_attn.o_norm."),
    (re.compile(r"\.attention_layer_norm\."), ".input_layernorm."),
    (re.compile(r"\.feedforward_layer_norm\."), ".post_attention_layernorm."),
)

_OLMO_CORE_OUTSIDE = {
    "embedding.weight": "embeddings.weight",
    "norm.weight": "lm_head.norm.weight",
    "head.weight": "lm_head.w_out.weight",
}
_OLMO_CORE_MLP = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
# Of the branch on which OLMo-core's hybrids began: one module wrapped another, with fla's names.
_OLMO_CORE_SPELLINGS = (
    (re.compile(r"\.fla_norm\."), ".attention_norm."),
    (re.compile(r"\.fla\.inner\.o_proj\."), ".attention.w_out."),
    (re.compile(r"\.fla\.inner\.([qkvabg])_proj\."), r".attention.w_\1."),
    (re.compile(r"\.fla\.inner\."), ".attention."),
)


def released_names(spec: ModelSpec) -> dict[str, str]:
    """Our parameter names to those of a released checkpoint on disk, in the order of the model."""
    return {name: _released_name(name, spec) for name in parameter_shapes(spec)}


def olmo_core_names(spec: ModelSpec) -> dict[str, str]:
    """Our parameter names to OLMo-core's, in the order of the model."""
    return {name: _olmo_core_name(name) for name in parameter_shapes(spec)}


def is_olmo_core(names: Iterable[str]) -> bool:
    return any(name.startswith("blocks.") for name in names)


def respell(names: Iterable[str]) -> dict[str, str]:
    """The canonical spelling of each stored name, to the stored one.

    Raises HuggingFaceError when two stored names are one parameter.
    """
    names = list(names)
    spellings = _OLMO_CORE_SPELLINGS if is_olmo_core(names) else _RELEASED_SPELLINGS
    found: dict[str, str] = {}
    for name in names:
        spelled = name
        for pattern, canonical in spellings:
            spelled = pattern.sub(canonical, spelled)
        if spelled in found:
            raise HuggingFaceError(f"{found[spelled]} and {name} are the same parameter")
        found[spelled] = name
    return found


def _released_name(name: str, spec: ModelSpec) -> str:
    if name in _RELEASED_OUTSIDE:
        return _RELEASED_OUTSIDE[name]
    block, index, module, leaf = _split(name)
    sublayer: SublayerSpec = spec.blocks[block][index]
    if module == "norm":
        part = _RELEASED_NORM[sublayer.norm_placement, sublayer.is_mixer]
    else:
        part, leaf = _RELEASED_OP[type(sublayer.op)], leaf.replace("_conv.", "_conv1d.")
    return f"model.layers.{block}.{part}.{leaf}"


def _olmo_core_name(name: str) -> str:
    """A block's first sublayer is its mixer there, too, and both kinds of mixer are called attention."""
    if name in _OLMO_CORE_OUTSIDE:
        return _OLMO_CORE_OUTSIDE[name]
    block, index, module, leaf = _split(name)
    part = "feed_forward" if index else "attention"
    if module == "norm":
        return f"blocks.{block}.{part}_norm.{leaf}"
    head, dot, rest = leaf.partition(".")
    if index:
        head = _OLMO_CORE_MLP[head]
    elif head == "o_proj":
        head = "w_out"
    elif head.endswith("_proj"):
        head = f"w_{head[0]}"
    return f"blocks.{block}.{part}.{head.replace('_conv', '_conv1d')}{dot}{rest}"


def _split(name: str) -> tuple[int, int, str, str]:
    """`blocks.B.sublayers.I.MODULE.LEAF`."""
    _, block, _, index, module, leaf = name.split(".", 5)
    return int(block), int(index), module, leaf
