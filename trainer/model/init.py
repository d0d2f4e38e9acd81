"""Initial weights, as OLMo-core draws them, from a seed and each parameter's name alone.

Each parameter has a generator of its own on the CPU, so its values depend neither on the order of the parameters, nor
on the device, nor on how the model is sharded.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

STD = 0.02  # OLMo-core's normal init: embedding, projections, convolutions and head alike, cut at three deviations
A_MAX = 16.0
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Overwrite every parameter, sharded (DTensor) or full, on any device but meta.

    Drawn in float32 and rounded to the parameter's dtype. Each full parameter is made on the CPU in turn, so the peak
    is one parameter, not one model.
    """
    for name, parameter in model.named_parameters():
        values = initial_values(name, parameter.shape, seed).to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            # Every rank has drawn the same values: src_data_rank=None skips the broadcast.
            values = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(values)


def initial_values(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial values of the parameter `name`, float32 on the CPU."""
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(_parameter_seed(name, seed))
    if name.endswith("norm.weight"):
        return values.fill_(1.0)
    if name.endswith("A_log"):
        return values.uniform_(generator=generator).neg_().add_(1.0).mul_(A_MAX).log_()  # of (0, 16]: never log 0
    if name.endswith("dt_bias"):
        return _inverse_softplus(_log_uniform(values, generator).clamp_(min=DT_FLOOR))
    return nn.init.trunc_normal_(values, std=STD, a=-3 * STD, b=3 * STD, generator=generator)


def _parameter_seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator takes 63 bits without a sign


def _log_uniform(values: Tensor, generator: torch.Generator) -> Tensor:
    return values.uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator).exp_()


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
