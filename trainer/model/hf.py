"""Names, weights and configuration in Hugging Face's form, both ways.

The form on disk is that of the released checkpoints: three unfused convolutions a layer. transformers 5.23 holds them
fused in memory; both are accepted, and either can be made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.count import parameter_shapes

_OUTSIDE_BLOCKS = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_OP_PREFIX: dict[type, str] = {AttentionSpec: "self_attn", GatedDeltaNetSpec: "linear_attn", SwiGLUSpec: "mlp"}
_NORM_NAME = {
    ("pre", True): "input_layernorm",
    ("pre", False): "post_attention_layernorm",
    ("post", True): "post_attention_layernorm",
    ("post", False): "post_feedforward_layernorm",
}
# Other spellings in circulation: the first two by OLMo-core's exporter, which transformers leaves unloaded without an
# error; the last two by save_pretrained.
_ALIASES = {
    "linear_attn.out_proj.": "linear_attn.o_proj.",
    "linear_attn.norm.": "linear_attn.o_norm.",
    ".attention_layer_norm.": ".input_layernorm.",
    ".feedforward_layer_norm.": ".post_attention_layernorm.",
}
_CONVOLUTION = re.compile(r"linear_attn\.[qkv]_conv1d\.weight$")


def hf_names(spec: ModelSpec) -> dict[str, str]:
    """Our parameter names to those of a released checkpoint, in the order of the model."""
    return {name: _hf_name(name, spec) for name in parameter_shapes(spec)}


def _hf_name(name: str, spec: ModelSpec) -> str:
    if name in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[name]
    _, block, _, index, module, leaf = name.split(".", 5)
    sublayer = spec.blocks[int(block)][int(index)]
    if module == "norm":
        part = _NORM_NAME[sublayer.norm_placement, sublayer.is_mixer]
    else:
        part, leaf = _OP_PREFIX[type(sublayer.op)], leaf.replace("_conv.", "_conv1d.")
    return f"model.layers.{block}.{part}.{leaf}"


def to_hugging_face(
    state: Mapping[str, Tensor], spec: ModelSpec, *, fuse_convolutions: bool = False
) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names. Tensors are views where they can be.

    Args:
        state: full (unsharded) tensors by our names.
        fuse_convolutions: one `conv1d.weight` a layer, as transformers 5.23 holds it in memory; three of them, as files
            do, if False.

    Raises:
        ValueError: a parameter is missing, unknown or misshapen.
    """
    _check(state, parameter_shapes(spec))
    renamed = {theirs: state[ours] for ours, theirs in hf_names(spec).items()}
    renamed = {name: _with_conv_axis(name, tensor) for name, tensor in renamed.items()}
    return _fuse(renamed) if fuse_convolutions else renamed


def from_hugging_face(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """A Hugging Face state dict, fused or not, in any known spelling, under our names.

    Raises:
        ValueError: a parameter is missing, unknown or misshapen. transformers would leave it at its random values.
    """
    # Fused and cut again also where three parts are given: save_pretrained of transformers 5.23 cuts three equal ones,
    # whatever the widths of q, k and v.
    spelled = _split_fused(_fuse({_spell(name): tensor for name, tensor in state.items()}), spec)
    theirs = hf_names(spec)
    shapes = parameter_shapes(spec)
    flat = {name: tensor.squeeze(1) if _CONVOLUTION.search(name) else tensor for name, tensor in spelled.items()}
    _check(flat, {theirs[name]: shape for name, shape in shapes.items()})
    return {ours: flat[name] for ours, name in theirs.items()}


def _spell(name: str) -> str:
    for alias, canonical in _ALIASES.items():
        name = name.replace(alias, canonical)
    return name


def _with_conv_axis(name: str, tensor: Tensor) -> Tensor:
    """A convolution's [C, W] as the [C, 1, W] of torch.nn.Conv1d; any other tensor as it is."""
    return tensor.unsqueeze(1) if _CONVOLUTION.search(name) else tensor


def _fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace the three convolutions of a layer, where there are three, by their concatenation in the order q, k, v."""
    fused = dict(state)
    for name in state:
        names = [name.replace("q_conv1d", f"{letter}_conv1d") for letter in "qkv"]
        if name.endswith("linear_attn.q_conv1d.weight") and all(part in state for part in names):
            whole = torch.cat([fused.pop(part) for part in names])
            fused[name.replace("q_conv1d", "conv1d")] = whole
    return fused


def _split_fused(state: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Cut each fused convolution into those of q, k and v."""
    split = dict(state)
    for block, sublayers in enumerate(spec.blocks):
        name = f"model.layers.{block}.linear_attn.conv1d.weight"
        op = sublayers[0].op
        if name not in state or not isinstance(op, GatedDeltaNetSpec):
            continue
        widths = [op.heads * op.key_dim, op.heads * op.key_dim, op.heads * op.value_dim]
        if state[name].shape[0] != sum(widths):
            raise ValueError(f"{name} has {state[name].shape[0]} channels, the model {sum(widths)}")
        for letter, part in zip("qkv", split.pop(name).split(widths), strict=True):
            split[name.replace("conv1d", f"{letter}_conv1d")] = part
    return split


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name}" for name in shapes if name not in state]
    problems += [f"unknown {name}" for name in state if name not in shapes]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"weights do not fit the model: {'; '.join(problems[:8])}{more}")


def hf_config(
    spec: ModelSpec,
    *,
    max_position_embeddings: int,
    eos_token_id: int | None,
    pad_token_id: int | None,
) -> dict[str, object]:
    """The content of `config.json` for transformers' OlmoHybridForCausalLM, dtype aside.

    RoPE or its absence is always written out: without `rope_parameters` transformers takes theta 10000.

    Raises:
        ValueError: the model is not one that OlmoHybridForCausalLM can express.
    """
    attention, delta_net, mlp = _olmo_hybrid_ops(spec)
    return {
        "architectures": ["OlmoHybridForCausalLM"],
        "model_type": "olmo_hybrid",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": mlp.hidden_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "layer_types": [_LAYER_TYPE[type(block[0].op)] for block in spec.blocks],
        "linear_num_key_heads": delta_net.heads,
        "linear_num_value_heads": delta_net.heads,
        "linear_key_head_dim": delta_net.key_dim,
        "linear_value_head_dim": delta_net.value_dim,
        "linear_conv_kernel_dim": delta_net.conv_width,
        "linear_allow_neg_eigval": delta_net.negative_eigenvalues,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_theta": attention.rope_theta, "rope_type": "default"},
        "max_position_embeddings": max_position_embeddings,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": False,
    }


_LAYER_TYPE: dict[type, str] = {AttentionSpec: "full_attention", GatedDeltaNetSpec: "linear_attention"}
_PLACEMENT: dict[type, str] = {AttentionSpec: "post", GatedDeltaNetSpec: "pre"}


def _olmo_hybrid_ops(spec: ModelSpec) -> tuple[AttentionSpec, GatedDeltaNetSpec, SwiGLUSpec]:
    """The one attention, Gated DeltaNet and SwiGLU that an Olmo Hybrid is made of."""
    if not all(_is_olmo_hybrid_block(block) for block in spec.blocks):
        raise ValueError("OlmoHybridForCausalLM has blocks of a mixer and a SwiGLU, pre-norm with Gated DeltaNet only")
    ops = {sublayer.op for sublayer in spec.sublayers}
    attention = [op for op in ops if isinstance(op, AttentionSpec)]
    delta_net = [op for op in ops if isinstance(op, GatedDeltaNetSpec)]
    mlp = [op for op in ops if isinstance(op, SwiGLUSpec)]
    if not len(attention) == len(delta_net) == len(mlp) == 1:
        raise ValueError("OlmoHybridForCausalLM has one kind each of attention, Gated DeltaNet and SwiGLU")
    if attention[0].window is not None or attention[0].heads * attention[0].head_dim != spec.d_model:
        raise ValueError("OlmoHybridForCausalLM has full attention whose heads make up d_model")
    return attention[0], delta_net[0], mlp[0]


def _is_olmo_hybrid_block(block: tuple[SublayerSpec, ...]) -> bool:
    if len(block) != 2 or not block[0].is_mixer:
        return False
    return {sublayer.norm_placement for sublayer in block} == {_PLACEMENT[type(block[0].op)]}
