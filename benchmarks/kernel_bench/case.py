"""One operation at one shape: what to run, on what, and how many bytes and operations it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# An H100 SXM: dense bfloat16 by the data sheet, memory by a device-to-device copy (bytes read and written).
PEAK_FLOPS = 989e12
BYTES_PER_S = 3.0e12

Implementation = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Work:
    """Fewest bytes of device memory (each input read once, each output written once) and floating-point operations."""

    bytes: float
    flops: float = 0.0

    @property
    def floor_ms(self) -> float:
        return 1e3 * max(self.bytes / BYTES_PER_S, self.flops / PEAK_FLOPS)

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass
class Case:
    """An operation at a shape.

    inputs: what every implementation is called with. Those that require a gradient get one in the backward pass,
        and so do `parameters`, which implementations hold.
    implementations: "ours" first, then those it is compared with.
    backward: None for an operation that makes its gradient in the same call.
    prepare: run before each timed call, not timed.
    reference: float64-capable, and small inputs for it and "ours".
    """

    operation: str
    shape: str
    inputs: Sequence[Tensor]
    implementations: dict[str, Implementation]
    forward: Work
    backward: Work | None
    parameters: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    reference: tuple[Implementation, Sequence[Tensor]] | None = None
