"""Pinned launch configurations of the Triton kernels: a restart on the same hardware runs the same machine code.

Nothing is autotuned in a run. `python -m kernels.gated_delta_rule.tune` measures the candidates on the GPU it runs on
and prints rows for this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["intra_chunk", "scan_states", "scan_states_for_backward", "scan_state_gradients", "chunk_gradients"]


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched.

    `value_block` is the number of value columns that a program, or a step of its loop, holds; `max_registers` a thread
    makes the compiler leave room for more programs on an SM.
    """

    num_warps: int
    num_stages: int
    value_block: int = 64
    max_registers: int | None = None


@dataclass(frozen=True)
class Pinned:
    """A configuration, why it is the one, and whether that was measured or is a guess."""

    configuration: Configuration
    origin: Literal["measured", "guess"]
    reason: str


_GUESS = "as on sm_90; compiles for it, not run there"
SIXTEEN_BIT: dict[int, dict[Kernel, Pinned]] = {
    90: {
        "intra_chunk": Pinned(
            Configuration(4, 1, max_registers=128), "measured", "four programs an SM; 0.46 ms, 0.49 without"
        ),
        "scan_states": Pinned(Configuration(4, 2), "measured", "0.85 ms; 1.32 at one stage, 1.16 at three (one an SM)"),
        "scan_states_for_backward": Pinned(
            Configuration(4, 2), "measured", "0.86 ms; one to four stages: 1.12 to 0.86"
        ),
        "scan_state_gradients": Pinned(Configuration(4, 2), "measured", "1.01 ms; 1.43 at one stage, 1.20 at three"),
        "chunk_gradients": Pinned(
            Configuration(8, 3), "measured", "2.12 ms; 2.37 at two stages: one program an SM, so loads must start early"
        ),
    },
}
for _architecture in (80, 100):
    SIXTEEN_BIT[_architecture] = {
        kernel: Pinned(pinned.configuration, "guess", _GUESS) for kernel, pinned in SIXTEEN_BIT[90].items()
    }

# float32 serves tests and small experiments. Its tiles are twice as large, and a product is three of tf32, so a scan holds
# few value columns, or registers spill.
THIRTY_TWO_BIT: dict[Kernel, Configuration] = {
    "intra_chunk": Configuration(4, 1),
    "scan_states": Configuration(4, 1, 16),
    "scan_states_for_backward": Configuration(4, 1, 16),
    "scan_state_gradients": Configuration(4, 1, 16),
    "chunk_gradients": Configuration(8, 1, 32),
}


def configuration(kernel: Kernel, capability: tuple[int, int], itemsize: int) -> Configuration:
    """Of the newest architecture in the table that is not newer than `capability`; the oldest for older ones.

    Args:
        capability: (major, minor) as `torch.cuda.get_device_capability` gives it.
        itemsize: bytes of an element of q, k, v: 2 or 4.
    """
    if itemsize == 4:
        return THIRTY_TWO_BIT[kernel]
    architecture = 10 * capability[0] + capability[1]
    known = [entry for entry in SIXTEEN_BIT if entry <= architecture]
    return SIXTEEN_BIT[max(known, default=min(SIXTEEN_BIT))][kernel].configuration
