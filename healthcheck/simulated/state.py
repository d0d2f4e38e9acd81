"""What a simulated node remembers, and how it keeps it in a file.

Faults are state: they outlive NVML's shutdown, the monitor and its restart, until a reset, a reboot or a repair clears
what it clears on the real part.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

VERSION = 1
KERNEL_LOG_LINES = 1000


class StateFileError(Exception):
    """The state file can't be used. Its text is for users."""


@dataclass
class Counter:
    """A counter that stands, or rises by `per_s` since `since_ns` (monotonic)."""

    base: int = 0
    per_s: float = 0.0
    since_ns: int = 0

    def value(self, now_ns: int) -> int:
        return self.base + int(self.per_s * max(0, now_ns - self.since_ns) / 1e9)

    def run(self, per_s: float, now_ns: int) -> None:
        self.base, self.per_s, self.since_ns = self.value(now_ns), per_s, now_ns


@dataclass
class GpuState:
    """Differences from a healthy part. Integers 0 and empty lists are healthy."""

    lost: bool = False
    hung: bool = False
    recovery_action: int = 0
    corrected: Counter = field(default_factory=Counter)
    uncorrected: int = 0
    sram_threshold_exceeded: bool = False
    rows_corrected: int = 0
    rows_uncorrected: int = 0
    rows_pending: bool = False
    rows_failed: bool = False
    channel_repair_pending: bool = False
    tpc_repair_pending: bool = False
    links_down: list[int] = field(default_factory=list)
    fabric_state: int = 3
    fabric_status: int = 0
    fabric_health_bits: int = 0  # or-ed into the healthy mask
    pcie_lanes_lost: int = 0
    pcie_generations_lost: int = 0
    replays: Counter = field(default_factory=Counter)
    heat_c: int = 0  # above idle
    clock_reasons: int = 0  # or-ed into the healthy mask
    thermal_slowdown: Counter = field(default_factory=Counter)  # ns
    power_brake: Counter = field(default_factory=Counter)  # ns
    leaked_mib: int = 0
    processes: dict[str, int] = field(default_factory=dict)  # pid -> MiB
    sticky: list[dict[str, Any]] = field(default_factory=list)  # injected again after every reset and reboot


@dataclass
class NodeState:
    profile: str
    seed: int
    gpus: list[GpuState]
    boots: int = 0
    kernel_log: list[str] = field(default_factory=list)
    version: int = VERSION


# What is written into the part or has a cause outside it. A reset clears all else.
SURVIVES_RESET = (
    "lost", "hung", "sram_threshold_exceeded", "rows_corrected", "rows_uncorrected", "rows_failed", "fabric_state",
    "fabric_status", "fabric_health_bits", "pcie_lanes_lost", "pcie_generations_lost", "replays", "heat_c",
    "clock_reasons", "thermal_slowdown", "power_brake", "sticky",
)  # fmt: skip
CLEARED_BY_REBOOT = ("lost", "hung", "fabric_state", "fabric_status", "fabric_health_bits")


def after_reset(gpu: GpuState) -> GpuState:
    """Volatile counters, the recommended recovery, downed links and pending repairs go; a pending row is now remapped."""
    kept = replace(GpuState(), **{name: getattr(gpu, name) for name in SURVIVES_RESET})
    kept.rows_uncorrected += int(gpu.rows_pending)
    return kept


def after_reboot(gpu: GpuState) -> GpuState:
    healthy = GpuState()
    return replace(after_reset(gpu), **{name: getattr(healthy, name) for name in CLEARED_BY_REBOOT})


def save(state: NodeState, path: Path) -> None:
    """Whole or not at all: a reader never sees half a state."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(asdict(state)))
    scratch.replace(path)


def load(path: Path) -> NodeState:
    """Raises StateFileError. A missing file is FileNotFoundError: the caller makes a new node then."""
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != VERSION:
            raise StateFileError(f"{path}: version {raw['version']} of the state is not {VERSION}: delete the file")
        gpus = [_gpu(fields_of) for fields_of in raw["gpus"]]
        return NodeState(**{**raw, "gpus": gpus})
    except (ValueError, KeyError, TypeError) as error:
        raise StateFileError(f"{path} holds no state of a simulated node ({error!r}): delete the file") from None


def _gpu(raw: dict[str, Any]) -> GpuState:
    counters = {f.name for f in fields(GpuState) if f.default_factory is Counter}
    values: dict[str, Any] = {n: Counter(**value) if n in counters else value for n, value in raw.items()}
    return GpuState(**values)
