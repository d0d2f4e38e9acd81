"""Initial weights as OLMo-core draws them: each element a pure function of seed, parameter name and its position.

The generator is counter-based, so a rank draws its own rows and no others, where they lie, for any layout. Every
operation on a matrix is an integer one or a single IEEE multiplication or addition: CPU and GPU give the same bits, and
replicas on unlike machines begin equal.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

STD = 0.02  # OLMo-core's normal init: embedding, projections, convolutions and head alike
CUT = 3.0  # deviations at which the normal is cut
A_MAX = 16.0
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4

_CHUNK = 1 << 18  # elements drawn at once: temporaries of 2 MiB stay in a CPU's cache
_QUANTILE_BITS = 14
_FRACTION_BITS = 24  # what a float32 holds


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Overwrite every parameter, full or sharded (DTensor) along dimension 0, on any device but meta.

    Drawn in float32 where the parameter lies, then rounded to its dtype; the peak is a few chunks.
    """
    for name, parameter in model.named_parameters():
        local, first = _local(name, parameter)
        for begin in range(0, local.numel(), _CHUNK):
            piece = local.view(-1)[begin : begin + _CHUNK]
            piece.copy_(initial_values(name, seed, first + begin, piece.numel(), local.device))


def initial_values(name: str, seed: int, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements [first, first + count) in row-major order of the parameter `name`; float32 on `device`."""
    if name.endswith("norm.weight"):
        return torch.ones(count, device=device)
    if name.endswith("A_log"):
        return _log_a(_uniform(name, seed, first, count)).float().to(device)
    if name.endswith("dt_bias"):
        return _dt_bias(_uniform(name, seed, first, count)).float().to(device)
    return _truncated_normal(_random_bits(name, seed, first, count, device))


def _local(name: str, parameter: Tensor) -> tuple[Tensor, int]:
    """This rank's elements, and the position of the first of them in the whole parameter."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    mesh, placements = parameter.device_mesh, list(parameter.placements)
    if placements.count(Shard(0)) > 1 or any(placement not in (Shard(0), Replicate()) for placement in placements):
        raise NotImplementedError(f"{name} is placed as {placements}; only dimension 0 may be sharded, and only once")
    row = 0
    for dimension, placement in enumerate(placements):
        if placement == Shard(0):  # as torch.chunk cuts
            row = mesh.get_coordinate()[dimension] * -(-len(parameter) // mesh.size(dimension))
    return parameter.to_local(), row * math.prod(parameter.shape[1:])


def _random_bits(name: str, seed: int, first: int, count: int, device: torch.device | str) -> Tensor:
    """int64 of 64 random bits each: SplitMix64 (Steele, Lea, Flood 2014), of which output i is a function of i alone.

    A parameter's key is where its stretch of the cycle of 2^64 begins; that two of 10^10 elements in all meet is less
    likely than one in a million.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = torch.arange(first + 1, first + 1 + count, dtype=torch.int64, device=device)
    bits.mul_(_signed(0x9E3779B97F4A7C15)).add_(int.from_bytes(digest[:8], "little", signed=True))
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(_signed(0x94D049BB133111EB))
    return bits.bitwise_xor_(_shifted(bits, 31))


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right, zeros coming in: torch's own shift repeats the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _truncated_normal(bits: Tensor) -> Tensor:
    """float32, deviation STD, cut at CUT deviations: the quantile function, interpolated between table entries."""
    below, step = _quantiles(bits.device)
    index = _shifted(bits, 64 - _QUANTILE_BITS)
    fraction = (bits >> 16).bitwise_and_((1 << _FRACTION_BITS) - 1).float().mul_(2.0**-_FRACTION_BITS)
    return fraction.mul_(step[index]).add_(below[index])


@cache
def _quantiles(device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 [2^14] each: the quantile at the lower end of each cell of equal probability, and the rise over it.

    Interpolation errs by at most 1e-4 of a deviation, at the cut, where the density is least.
    """
    normal, cells = NormalDist(), 1 << _QUANTILE_BITS
    low = normal.cdf(-CUT)
    # Half is computed and mirrored, so that the mean is exactly 0.
    half = [STD * normal.inv_cdf(low + (1 - 2 * low) * i / cells) for i in range(cells // 2)]
    table = torch.tensor([*half, 0.0, *(-x for x in reversed(half))], dtype=torch.float64)
    table = table.float()
    return table[:-1].to(device), table.diff().to(device)


def _uniform(name: str, seed: int, first: int, count: int) -> Tensor:
    """float64 in (0, 1], on the CPU: logarithms of it aren't the same on every device, and these vectors are short."""
    return (_shifted(_random_bits(name, seed, first, count, "cpu"), 11) + 1).double() * 2.0**-53


def _log_a(uniform: Tensor) -> Tensor:
    """log A of A ~ U(0, 16]: never the log of 0."""
    return (A_MAX * uniform).log()


def _dt_bias(uniform: Tensor) -> Tensor:
    """The inverse softplus of dt, log-uniform in [DT_MIN, DT_MAX]."""
    dt = (math.log(DT_MIN) + math.log(DT_MAX / DT_MIN) * uniform).exp().clamp_(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
