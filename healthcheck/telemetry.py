"""What a GPU node says about itself, as immutable values, and the interface of whoever asks it.

Every value is a `Reading`: the value, or `Skipped` with the reason where the part, its driver or our rights do not give
it. Skipped is not passed: a check that meets it answers skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Skipped:
    reason: str


Reading: TypeAlias = T | Skipped


class TelemetryError(Exception):
    """The telemetry could not answer. Its text is for users."""


class NvmlUnavailable(TelemetryError):  # noqa: N818 - a state of the machine, not a mistake
    """There is no driver, no GPU or no permission: nothing can be asked at all."""


class GpuLost(TelemetryError):  # noqa: N818
    """One GPU no longer answers. `reset_required` tells a GPU that waits for its reset from one off the bus."""

    def __init__(self, message: str, *, reset_required: bool = False) -> None:
        super().__init__(message)
        self.reset_required = reset_required


class HandleState(StrEnum):
    OK = "ok"
    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Identity:
    name: Reading[str]
    uuid: Reading[str]
    serial: Reading[str]
    pci_bus_id: Reading[str]  # domain:bus:device.function, lower case, domain of 4 digits as in the kernel log
    pci_device_id: Reading[int]  # device << 16 | vendor
    vbios: Reading[str]
    gsp_firmware: Reading[str]


@dataclass(frozen=True, slots=True)
class Memory:
    """`used_bytes` leaves out what the driver keeps for itself (`reserved_bytes`)."""

    total_bytes: Reading[int]
    reserved_bytes: Reading[int]
    used_bytes: Reading[int]
    free_bytes: Reading[int]


@dataclass(frozen=True, slots=True)
class Clocks:
    """`event_reasons` is NVML's bit mask of now; the `_ns` counters are time spent held back since the driver loaded."""

    sm_mhz: Reading[int]
    sm_max_mhz: Reading[int]
    memory_mhz: Reading[int]
    memory_max_mhz: Reading[int]
    event_reasons: Reading[int]
    thermal_slowdown_ns: Reading[int]
    power_brake_ns: Reading[int]
    software_power_cap_ns: Reading[int]


@dataclass(frozen=True, slots=True)
class Thermal:
    """`margin_c` counts down to the part's own limit; slowdown and shutdown are points on that scale, below zero."""

    gpu_c: Reading[int]
    margin_c: Reading[int]
    slowdown_margin_c: Reading[int]
    shutdown_margin_c: Reading[int]


@dataclass(frozen=True, slots=True)
class Power:
    draw_mw: Reading[int]
    limit_mw: Reading[int]


@dataclass(frozen=True, slots=True)
class Ecc:
    """Volatile counters: since the driver loaded or the GPU was reset. The SRAM threshold is of the part's whole life."""

    corrected: Reading[int]
    uncorrected: Reading[int]
    sram_threshold_exceeded: Reading[bool]


@dataclass(frozen=True, slots=True)
class Repair:
    """Row remapping, and the channel and TPC repairs that a reset carries out."""

    rows_corrected: Reading[int]
    rows_uncorrected: Reading[int]
    rows_pending: Reading[bool]
    rows_failed: Reading[bool]
    channel_pending: Reading[bool]
    tpc_pending: Reading[bool]


@dataclass(frozen=True, slots=True)
class Fabric:
    """`state`: 0 not supported, 1 not started, 2 in progress, 3 completed. `status` is an NVML return code."""

    state: Reading[int]
    status: Reading[int]
    health_mask: Reading[int]


@dataclass(frozen=True, slots=True)
class Pcie:
    generation: Reading[int]
    generation_max: Reading[int]
    width: Reading[int]
    width_max: Reading[int]
    replays: Reading[int]


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    used_bytes: Reading[int]


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One GPU at `at_ns` (monotonic). When `handle` is not OK every other reading is Skipped.

    `errors` are getters that failed in a way that no healthy part does. `links` holds one bool a NVLink, True: up.
    """

    index: int
    at_ns: int
    handle: HandleState
    identity: Identity
    memory: Memory
    utilization_percent: Reading[int]
    clocks: Clocks
    thermal: Thermal
    power: Power
    ecc: Ecc
    repair: Repair
    recovery_action: Reading[int]
    links: Reading[tuple[bool, ...]]
    fabric: Fabric
    pcie: Pcie
    processes: Reading[tuple[Process, ...]]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """`pci_gpus` is what the PCI bus shows, to be compared with what the driver shows (`gpus`)."""

    at_ns: int
    driver: Reading[str]
    pci_gpus: Reading[int]
    gpus: tuple[GpuSnapshot, ...]


@dataclass(frozen=True, slots=True)
class XidEvent:
    """One XID. `recovery_action` is the driver's verdict at that moment, where it was asked; `detail` the log's words."""

    gpu: int
    xid: int
    at_ns: int
    recovery_action: int | None = None
    detail: str = ""


class Telemetry(Protocol):
    """Whoever answers for the GPUs of this machine. Any call may block for good when the driver hangs: run it aside.

    `wait_xid` may be called from one thread while another takes snapshots.
    """

    def gpu_count(self) -> int: ...

    def snapshot(self) -> NodeSnapshot:
        """Every GPU, fresh. A lost one is in it, with its handle state. Raises NvmlUnavailable."""
        ...

    def wait_xid(self, timeout_s: float) -> XidEvent | None:
        """The next XID of any GPU, or None after `timeout_s`. Events before the first call are not seen."""
        ...

    def close(self) -> None: ...


def all_skipped(group: type[T], reason: str) -> T:
    """A group of readings none of which could be taken."""
    return group(*[Skipped(reason)] * len(fields(group)))  # type: ignore[arg-type]


def silent_gpu(
    index: int, at_ns: int, handle: HandleState, reason: str, identity: Identity | None = None
) -> GpuSnapshot:
    """A GPU that gave no answer: what is known of it, and nothing else."""
    skipped = Skipped(reason)
    return GpuSnapshot(
        index=index,
        at_ns=at_ns,
        handle=handle,
        identity=identity or all_skipped(Identity, reason),
        memory=all_skipped(Memory, reason),
        utilization_percent=skipped,
        clocks=all_skipped(Clocks, reason),
        thermal=all_skipped(Thermal, reason),
        power=all_skipped(Power, reason),
        ecc=all_skipped(Ecc, reason),
        repair=all_skipped(Repair, reason),
        recovery_action=skipped,
        links=skipped,
        fabric=all_skipped(Fabric, reason),
        pcie=all_skipped(Pcie, reason),
        processes=skipped,
    )
