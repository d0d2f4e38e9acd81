"""Which steps are outliers: loss or gradient norm far above what the last steps had. Pure.

The rule is OLMo-core's skip-step optimizer's: one-sided, mean + sigma x unbiased deviation over up to 128 earlier steps, of
which there must be 64. Like there, outliers enter the window: a spike that lasts is a new level, and is taken for one after
the fourth skip, for four equal outliers in 128 values stretch the deviation to a sixth of their height. Were they kept
out, no later step would pass. What is not finite never enters: it would blind the window until it leaves.

Sums are correctly rounded (math.fsum), so every rank, Python and machine gets the same bits from the same window.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_STEPS = 128
MIN_STEPS = 64
WINDOW_FIELDS = 1 + 2 * WINDOW_STEPS


@dataclass(frozen=True)
class Window:
    """Loss and gradient norm of the newest steps that were finite, oldest first, at most WINDOW_STEPS; float64."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.losses) != len(self.norms) or len(self.losses) > WINDOW_STEPS:
            raise ValueError(f"a window of {len(self.losses)} losses and {len(self.norms)} norms")
        if not all(map(math.isfinite, (*self.losses, *self.norms))):
            raise ValueError("a window with a value that is not finite")

    def after(self, loss: float, norm: float) -> Window:
        """The window that the next step is measured by."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self
        return Window((*self.losses, loss)[-WINDOW_STEPS:], (*self.norms, norm)[-WINDOW_STEPS:])

    def why_outlier(self, loss: float, norm: float, sigma: float) -> str:
        """What makes a step an outlier; empty when nothing does, the window is still short, or `sigma` is 0."""
        if sigma == 0 or len(self.losses) < MIN_STEPS:
            return ""
        for name, value, values in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            if value > (limit := threshold(values, sigma)):
                return (
                    f"{name} {value:.6g} is above {limit:.6g}, {sigma:g} deviations over the last {len(values)} steps"
                )
        return ""

    def pack(self) -> list[int]:
        """WINDOW_FIELDS int64: the number of steps, then losses and norms as their bits, each padded with zeros."""
        count = len(self.losses)
        padding = (0.0,) * (WINDOW_STEPS - count)
        values = (*self.losses, *padding, *self.norms, *padding)
        return [count, *struct.unpack(f"<{len(values)}q", struct.pack(f"<{len(values)}d", *values))]

    @classmethod
    def unpack(cls, fields: Sequence[int]) -> Window:
        count, *bits = fields
        values = struct.unpack(f"<{len(bits)}d", struct.pack(f"<{len(bits)}q", *bits))
        return cls(values[:count], values[WINDOW_STEPS : WINDOW_STEPS + count])

    def to_json(self) -> dict[str, list[str]]:
        """Hexadecimal floats: exact through any JSON."""
        return {"losses": [value.hex() for value in self.losses], "norms": [value.hex() for value in self.norms]}

    @classmethod
    def from_json(cls, value: dict[str, list[str]]) -> Window:
        """Raises KeyError or ValueError for anything but a window."""
        return cls(tuple(map(float.fromhex, value["losses"])), tuple(map(float.fromhex, value["norms"])))


def threshold(values: Sequence[float], sigma: float) -> float:
    """Mean + sigma x unbiased deviation of at least two values."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) * (value - mean) for value in values)
    return mean + sigma * math.sqrt(squares / (len(values) - 1))
