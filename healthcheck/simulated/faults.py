"""What an XID or an injected fault does to a GPU's state, beside being logged.

XID, recovery action, counters and links move together, as they do on a real part: whoever looks at one finds the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from healthcheck.nvml.abi import ClockReason, FabricState, RecoveryAction
from healthcheck.simulated.profile import Profile
from healthcheck.simulated.state import GpuState
from healthcheck.xid import XIDS

NS = 1e9


class FaultError(Exception):
    """The fault can't be injected. Its text is for users."""


@dataclass(frozen=True)
class Effect:
    recovery: RecoveryAction = RecoveryAction.NONE
    uncorrected: int = 0
    corrected: int = 0
    rows_pending: bool = False
    rows_failed: bool = False
    link_down: bool = False
    lost: bool = False
    repair_pending: bool = False


_RESET = Effect(RecoveryAction.GPU_RESET)
_LINK = Effect(RecoveryAction.GPU_RESET, link_down=True)
_EFFECTS = {
    **dict.fromkeys((46, 62, 109, 110, 119, 120, 143, 158, 169), _RESET),
    48: Effect(RecoveryAction.GPU_RESET, uncorrected=1),
    63: Effect(rows_pending=True),
    64: Effect(RecoveryAction.GPU_RESET, rows_failed=True),
    74: _LINK,
    79: Effect(RecoveryAction.NODE_REBOOT, lost=True),
    92: Effect(corrected=1000),
    94: Effect(uncorrected=1, rows_pending=True),
    95: Effect(RecoveryAction.GPU_RESET, uncorrected=1),
    136: _LINK,
    140: Effect(RecoveryAction.GPU_RESET, uncorrected=1),
    149: _LINK,
    155: _LINK,
    156: Effect(RecoveryAction.GPU_RESET, repair_pending=True),
    167: Effect(RecoveryAction.NODE_REBOOT),
    168: Effect(RecoveryAction.NODE_REBOOT),
}


def apply_xid(gpu: GpuState, xid: int, link: int = 0) -> None:
    effect = _EFFECTS.get(xid, Effect())
    gpu.recovery_action = max(gpu.recovery_action, effect.recovery)
    gpu.uncorrected += effect.uncorrected
    gpu.corrected.base += effect.corrected
    gpu.rows_pending |= effect.rows_pending
    gpu.rows_failed |= effect.rows_failed
    gpu.channel_repair_pending |= effect.repair_pending
    gpu.lost |= effect.lost
    if effect.link_down and link not in gpu.links_down:
        gpu.links_down = sorted([*gpu.links_down, link])


def log_line(pci_bus_id: str, xid: int) -> str:
    known = XIDS.get(xid)
    words = known.sentence if known else "unknown"
    return f"NVRM: Xid (PCI:{pci_bus_id.rsplit('.', 1)[0]}): {xid}, pid='<unknown>', name=<unknown>, {words}"


RECOVERY_WORDS = {
    RecoveryAction.NONE: "None",
    RecoveryAction.GPU_RESET: "GPU Reset Required",
    RecoveryAction.NODE_REBOOT: "Node Reboot Required",
    RecoveryAction.DRAIN_P2P: "Drain P2P",
    RecoveryAction.DRAIN_AND_RESET: "Drain and Reset",
}


def recovery_line(pci_bus_id: str, before: int, now: int) -> str:
    was, is_now = (f"{code:#x} ({RECOVERY_WORDS.get(RecoveryAction(code), 'Other')})" for code in (before, now))
    place = pci_bus_id.rsplit(".", 1)[0]
    return f"NVRM: Xid (PCI:{place}): 154, GPU recovery action changed from {was} to {is_now}"


@dataclass(frozen=True)
class Injection:
    """Where a fault goes, and its numbers from the request."""

    gpu: GpuState
    profile: Profile
    now_ns: int
    request: dict[str, Any]

    def number(self, name: str, default: float) -> float:
        value = self.request.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FaultError(f"{name} must be a number, not {value!r}")
        return value

    def integer(self, name: str, default: int, low: int = 0, high: int = 2**31 - 1) -> int:
        value = int(self.number(name, default))
        if not low <= value <= high:
            raise FaultError(f"{name} must be from {low} to {high}, not {value}")
        return value


def _xid(i: Injection) -> list[int]:
    return [i.integer("xid", 0, low=1)] * i.integer("count", 1, low=1, high=10_000)


def _lost(_i: Injection) -> list[int]:
    return [79]


def _hang(i: Injection) -> list[int]:
    i.gpu.hung = True
    return []


def _ecc(i: Injection) -> list[int]:
    """`uncorrected` errors (default 1 when nothing else is asked for), `corrected` at once, `corrected_per_s` from now on."""
    asked = any(name in i.request for name in ("corrected", "corrected_per_s"))
    i.gpu.corrected.run(i.number("corrected_per_s", i.gpu.corrected.per_s), i.now_ns)
    i.gpu.corrected.base += i.integer("corrected", 0)
    return [48] * i.integer("uncorrected", 0 if asked else 1, high=10_000)


def _sram(i: Injection) -> list[int]:
    i.gpu.sram_threshold_exceeded = True
    return [48, 172]


def _remap(i: Injection) -> list[int]:
    """`failure`: 1 for a row that could not be remapped; else one that waits for a reset. `rows`: remapped before."""
    i.gpu.rows_uncorrected += i.integer("rows", 0)
    return [64 if i.integer("failure", 0) else 63]


def _nvlink(i: Injection) -> list[int]:
    """`link` (default 0) goes down."""
    return [i.profile.link_xid]


def _fabric(i: Injection) -> list[int]:
    """`state` 1 to 3 (default 1, not started), `status` an NVML return code, `health` bits of the mask."""
    i.gpu.fabric_status = i.integer("status", 0)
    i.gpu.fabric_health_bits = i.integer("health", 0)
    asked = i.gpu.fabric_status or i.gpu.fabric_health_bits
    i.gpu.fabric_state = i.integer("state", FabricState.COMPLETED if asked else FabricState.NOT_STARTED, high=3)
    return []


def _thermal(i: Injection) -> list[int]:
    """`heat_c` above idle; by default past the point of slowdown."""
    i.gpu.heat_c = i.integer("heat_c", i.profile.idle_margin_c - i.profile.slowdown_margin_c + 1)
    return []


def _throttle(i: Injection) -> list[int]:
    """Held back by heat, or with `power_brake`: 1 by the power brake, from now on."""
    brake = bool(i.integer("power_brake", 0))
    i.gpu.clock_reasons |= ClockReason.HW_SLOWDOWN
    i.gpu.clock_reasons |= ClockReason.HW_POWER_BRAKE if brake else ClockReason.HW_THERMAL_SLOWDOWN
    (i.gpu.power_brake if brake else i.gpu.thermal_slowdown).run(NS, i.now_ns)
    return []


def _pcie(i: Injection) -> list[int]:
    """`width` lanes left (default 8), `generation` left, `replays_per_s` from now on."""
    full, generation = i.profile.pcie_width, i.profile.pcie_generation
    replays = "replays_per_s" in i.request
    i.gpu.pcie_lanes_lost = full - i.integer("width", full if replays else full // 2, low=1, high=full)
    i.gpu.pcie_generations_lost = generation - i.integer("generation", generation, low=1, high=generation)
    i.gpu.replays.run(i.number("replays_per_s", 0), i.now_ns)
    return []


def _leak(i: Injection) -> list[int]:
    i.gpu.leaked_mib = i.integer("mib", 4096, high=i.profile.memory_mib - i.profile.reserved_mib)
    return []


def _process(i: Injection) -> list[int]:
    i.gpu.processes[str(i.integer("pid", 4242, low=1))] = i.integer("mib", 1024)
    return []


FAULTS: dict[str, Callable[[Injection], list[int]]] = {
    "xid": _xid,
    "lost": _lost,
    "hang": _hang,
    "ecc": _ecc,
    "sram": _sram,
    "remap": _remap,
    "nvlink": _nvlink,
    "fabric": _fabric,
    "thermal": _thermal,
    "throttle": _throttle,
    "pcie": _pcie,
    "leak": _leak,
    "process": _process,
}
