"""The whole Gated DeltaNet mixer, projections to output, against Hugging Face's with fla's kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.kernel_bench import fla
from benchmarks.kernel_bench.case import Case, Implementation, Work
from trainer.model.config import GatedDeltaNetSpec
from trainer.model.context import Context
from trainer.model.gated_deltanet import GatedDeltaNet

D_MODEL, SPEC = 3840, GatedDeltaNetSpec(heads=30, key_dim=96, value_dim=192)


def cases() -> Iterator[Case]:
    batch, length = 4, 8192
    ours = _ours()
    implementations: dict[str, Implementation] = {"ours": lambda x: ours(x, Context())}
    parameters = {"ours": list(ours.parameters())}
    compiled = torch.compile(ours, fullgraph=True, dynamic=False)
    implementations["compiled"], parameters["compiled"] = (lambda x: compiled(x, Context())), list(ours.parameters())
    if fla.available():
        theirs = _hugging_face()
        implementations["fla"], parameters["fla"] = (lambda x: theirs(x)), list(theirs.parameters())
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, length, D_MODEL, generator=generator, device="cuda").bfloat16().requires_grad_()
    forward = _forward_work(batch * length, sum(p.numel() for p in ours.parameters()))
    yield Case(
        "GDN mixer", f"{batch} x {length} x {D_MODEL}", [x], implementations,
        forward, Work(2 * forward.bytes, 2 * forward.flops), parameters,
    )  # fmt: skip


def _forward_work(tokens: int, parameters: int) -> Work:
    """Two operations a parameter and token, the delta rule's own left out (4%); bytes: x, the output, the weights."""
    return Work(2 * (2 * tokens * D_MODEL + parameters), 2 * tokens * parameters)


def _initialised(module: nn.Module) -> nn.Module:
    generator = torch.Generator("cuda").manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            nn.init.uniform_(parameter, -4.0, 1.0, generator=generator)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return module.bfloat16()


def _ours() -> nn.Module:
    with torch.device("cuda"):
        return _initialised(GatedDeltaNet(D_MODEL, SPEC))


def _hugging_face() -> nn.Module:
    from transformers import OlmoHybridConfig
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    config = OlmoHybridConfig(
        hidden_size=D_MODEL, num_hidden_layers=4, num_attention_heads=30, num_key_value_heads=30,
        linear_num_key_heads=SPEC.heads, linear_num_value_heads=SPEC.heads,
        linear_key_head_dim=SPEC.key_dim, linear_value_head_dim=SPEC.value_dim,
        linear_conv_kernel_dim=SPEC.conv_width, linear_allow_neg_eigval=True,
    )  # fmt: skip
    with torch.device("cuda"):
        return _initialised(OlmoHybridGatedDeltaNet(config, layer_idx=0))
