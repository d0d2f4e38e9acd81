"""Which telemetry answers for this process: the machine's NVML, or a simulated node under the same wrappers.

The vendor's wrappers are imported here, at need, so that a machine without them still gets plain words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from healthcheck.simulated.library import SimulatedLibrary
from healthcheck.simulated.node import SimulatedNode
from healthcheck.spec import AUTO, SPECS, NodeSpec
from healthcheck.telemetry import NvmlUnavailable, Telemetry

DEFAULT_PROFILE = {"nvml": AUTO.name, "simulated": "hgx_b200"}


@dataclass(frozen=True)
class Source:
    """`connect` talks to the driver: it may raise NvmlUnavailable, or hang. `node` is what can be broken, if simulated."""

    connect: Callable[[], Telemetry]
    spec: NodeSpec
    node: SimulatedNode | None = None


def open_source(telemetry: str, profile: str = "", state: Path | None = None, seed: int = 0) -> Source:
    """Raises simulated.state.StateFileError, with words for users. Nothing here waits for a driver."""
    profile = profile or DEFAULT_PROFILE[telemetry]
    if telemetry == "nvml":
        return Source(_connect_machine, SPECS[profile])
    node = SimulatedNode(profile, seed, state)
    return Source(lambda: connect_node(node), SPECS[node.profile.name], node)


def connect_node(node: SimulatedNode) -> Telemetry:
    """The real wrappers over a simulated node; process-wide, see healthcheck.nvml.binding.install."""
    from healthcheck.nvml import binding
    from healthcheck.nvml.telemetry import NvmlTelemetry

    binding.install(SimulatedLibrary(node))
    return NvmlTelemetry(pci_gpus=lambda: node.profile.gpus, now_ns=node.now_ns)


def _connect_machine() -> Telemetry:
    try:
        from healthcheck.nvml.telemetry import NvmlTelemetry
    except ImportError as error:
        raise NvmlUnavailable(f"the Python package nvidia-ml-py is missing: {error}") from None
    return NvmlTelemetry()
