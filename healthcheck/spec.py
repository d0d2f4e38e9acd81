"""What a node should look like, and where a reading becomes a finding.

Expected values of a profile come from real parts; 0 means: expect only what the node itself says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1024 * 1024


@dataclass(frozen=True)
class NodeSpec:
    name: str
    gpus: int = 0  # 0: as many as the PCI bus shows
    nvlinks: int = 0  # 0: as many as the part counts
    # The node should hold no job now: memory in use or a process is a finding then.
    idle: bool = False
    idle_memory_bytes: int = 1024 * MIB  # a healthy idle HGX B200 GPU uses none beside the driver's reserve
    # One corrected error a second is worth watching, a hundred is a part on its way out (ours; a field case of 17,657/s
    # went unreported because only the count was looked at).
    corrected_ecc_watch_per_s: float = 1.0
    corrected_ecc_inspect_per_s: float = 100.0
    remapped_rows_warning: int = 512  # uncorrectable remaps, as NVIDIA's DCGM warns
    # Hardware slowdown in 6 of 10 minutes (gpud's 0.6 a minute over 10 minutes), measured by the driver's own counters.
    throttled_share: float = 0.6
    throttle_window_s: float = 600.0
    pcie_replays_per_min: float = 31.0  # Gen5 x16
    pcie_busy_percent: int = 50  # below it an idle link may run at a lower generation to save power
    fabric_patience_s: float = 60.0  # for a fabric that is still being set up


HGX_B200 = NodeSpec(name="hgx_b200", gpus=8, nvlinks=18)
HGX_H100 = NodeSpec(name="hgx_h100", gpus=8, nvlinks=18)
AUTO = NodeSpec(name="auto")
SPECS = {spec.name: spec for spec in (AUTO, HGX_B200, HGX_H100)}


def while_idle(spec: NodeSpec) -> NodeSpec:
    return replace(spec, idle=True)
