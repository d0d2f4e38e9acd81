"""Floating-point operations of training, counted by formula, and what share of a device's peak a throughput is.

Two countings. `six_n` is what papers quote: 6 operations for each token and each parameter that takes part in a matrix
product, the output head included and the input embedding not (Kaplan et al., arXiv:2001.08361, appendix B);
recomputation, attention and the delta rule count nothing. `model` adds attention's products, half of them above
the diagonal left out, and the delta rule's in chunks of 64. Backward passes count twice the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, ModelSpec

DELTA_RULE_CHUNK = 64
# Dense bfloat16, FLOP/s, from NVIDIA's datasheets; by the beginning of torch.cuda.get_device_name().
_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}


@dataclass(frozen=True)
class TrainingFlops:
    """Of one token, forward and backward."""

    six_n: int
    model: int


@dataclass(frozen=True)
class Throughput:
    """Of one device. `mfu` by 6N, `mfu_model` with attention and the delta rule; None: the device's peak isn't known."""

    tokens_per_s: float
    mfu: float | None
    mfu_model: float | None


def training_flops(spec: ModelSpec, sequence_length: int) -> TrainingFlops:
    """Per token, in rows of `sequence_length` that are one document each: shorter documents need less attention."""
    from trainer.model.count import count_by_part  # torch, which a configuration's check does without

    parts = count_by_part(spec)
    six_n = 6 * (sum(parts.values()) - parts["embedding"])
    mixers = sum(_forward_of_mixer(sublayer.op, sequence_length) for sublayer in spec.sublayers)
    return TrainingFlops(six_n, six_n + 3 * mixers)


def throughput(
    flops: TrainingFlops, tokens: int, seconds: float, devices: int = 1, device_name: str = ""
) -> Throughput:
    """What `tokens` trained in `seconds` by `devices` come to on each of them."""
    rate = tokens / seconds / devices
    peak = peak_flops(device_name)
    return Throughput(rate, rate * flops.six_n / peak if peak else None, rate * flops.model / peak if peak else None)


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device named as torch.cuda.get_device_name() does; None: not in the table."""
    fitting = [name for name in _PEAKS if device_name.startswith(name)]
    return _PEAKS[max(fitting, key=len)] if fitting else None


def _forward_of_mixer(op: object, length: int) -> int:
    """Operations a token of what has no parameters."""
    match op:
        case AttentionSpec(heads, head_dim, _, window):
            seen = _mean_seen(length, window)  # q k^T and p v: a product and a sum for each element
            return round(4 * heads * head_dim * seen)
        case GatedDeltaNetSpec(heads, key_dim, value_dim):
            # Inside a chunk k k^T, q k^T and T (beta k e^G), T (beta v) and p v'; w S, q S and k^T v' with the state.
            inside = 2 * DELTA_RULE_CHUNK * (3 * key_dim + 2 * value_dim)
            return heads * (inside + 6 * key_dim * value_dim)
    return 0


def _mean_seen(length: int, window: int | None) -> float:
    """Tokens that a token sees, itself included, on average over a row."""
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length
