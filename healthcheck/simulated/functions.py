"""NVML's device functions over a simulated node, under their C names and with their C arguments.

The real pynvml wrappers call them: `byref` arguments give the structure as `._obj`, numbers come as ctypes values. A
function that is not here does not exist, which the wrappers turn into NVMLError_FunctionNotFound.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from healthcheck.nvml.abi import VALUE_MEMBER, ClockReason, Field, Return, ValueType
from healthcheck.simulated.node import SimulatedNode
from healthcheck.simulated.profile import Profile
from healthcheck.simulated.state import GpuState

if TYPE_CHECKING:
    from healthcheck.simulated.library import SimulatedLibrary

FUNCTIONS: dict[str, Callable[..., Any]] = {}
MIB = 1024 * 1024
CLOCK_MEMORY = 2  # nvmlClockType_t; the others run with the SMs here
UNCORRECTED = 1  # nvmlMemoryErrorType_t


class Gpu:
    """One GPU at the moment of a call: its state, its profile and its clock."""

    def __init__(self, library: SimulatedLibrary, index: int) -> None:
        self.library = library
        self.node: SimulatedNode = library.node
        self.index: int = index
        self.profile: Profile = library.node.profile

    @property
    def state(self) -> GpuState:
        return self.node.state.gpus[self.index]

    @property
    def now_ns(self) -> int:
        return self.node.now_ns()


Body = Callable[..., Return | None]


def device_function(name: str) -> Callable[[Body], Body]:
    """Registers `body(gpu, *arguments)`: checked handle, answers of a lost GPU, and the blocking of a hung one."""

    def register(body: Body) -> Body:
        def call(library: SimulatedLibrary, handle: Any, *arguments: Any) -> Return:
            index = library.index_of(handle)
            if not library.initialized:
                return Return.UNINITIALIZED
            if index is None:
                return Return.INVALID_ARGUMENT
            with library.node.lock:
                gpu = Gpu(library, index)
                library.node.unhung.wait_for(lambda: not gpu.state.hung)
                if gpu.state.lost:
                    return Return.GPU_IS_LOST
                return body(gpu, *arguments) or Return.SUCCESS

        FUNCTIONS[name] = call
        return body

    return register


def _scalar(name: str, value: Callable[..., int]) -> None:
    """A getter whose last argument takes the answer; those before it are passed on as numbers."""

    def body(gpu: Gpu, *arguments: Any) -> None:
        *given, out = arguments
        out._obj.value = value(gpu, *(int(argument.value) for argument in given))

    device_function(name)(body)


def _text(name: str, value: Callable[[Gpu], str]) -> None:
    def body(gpu: Gpu, buffer: Any, _length: Any = None) -> None:
        buffer.value = value(gpu).encode()

    device_function(name)(body)


def _sm_mhz(gpu: Gpu) -> int:
    return gpu.profile.sm_max_mhz if gpu.state.processes else gpu.profile.sm_idle_mhz


def _ecc_total(gpu: Gpu, kind: int, _counter: int) -> int:
    return gpu.state.uncorrected if kind == UNCORRECTED else gpu.state.corrected.value(gpu.now_ns)


def _clock_reasons(gpu: Gpu) -> int:
    return gpu.state.clock_reasons or ClockReason.GPU_IDLE


_text("nvmlDeviceGetName", lambda gpu: gpu.profile.gpu_name)
_text("nvmlDeviceGetUUID", lambda gpu: gpu.node.uuid(gpu.index))
_text("nvmlDeviceGetSerial", lambda gpu: f"{gpu.node.state.seed % 10**9:09d}{gpu.index:04d}")
_text("nvmlDeviceGetVbiosVersion", lambda gpu: gpu.profile.vbios)
_text("nvmlDeviceGetGspFirmwareVersion", lambda gpu: gpu.profile.driver)
_scalar("nvmlDeviceGetTemperature", lambda g, _sensor: g.profile.idle_c + g.state.heat_c + g.node.noise(g.index, 1))
_scalar("nvmlDeviceGetPowerUsage", lambda gpu: gpu.profile.idle_power_mw + gpu.node.noise(gpu.index, 900))
_scalar("nvmlDeviceGetEnforcedPowerLimit", lambda gpu: gpu.profile.power_limit_mw)
_scalar("nvmlDeviceGetClockInfo", lambda g, kind: g.profile.memory_mhz if kind == CLOCK_MEMORY else _sm_mhz(g))
_scalar(
    "nvmlDeviceGetMaxClockInfo",
    lambda gpu, kind: gpu.profile.memory_mhz if kind == CLOCK_MEMORY else gpu.profile.sm_max_mhz,
)
_scalar("nvmlDeviceGetCurrentClocksEventReasons", _clock_reasons)
_scalar("nvmlDeviceGetTotalEccErrors", _ecc_total)
_scalar("nvmlDeviceGetMaxPcieLinkGeneration", lambda gpu: gpu.profile.pcie_generation)
_scalar("nvmlDeviceGetMaxPcieLinkWidth", lambda gpu: gpu.profile.pcie_width)
_scalar(
    "nvmlDeviceGetCurrPcieLinkGeneration", lambda gpu: gpu.profile.pcie_generation - gpu.state.pcie_generations_lost
)
_scalar("nvmlDeviceGetCurrPcieLinkWidth", lambda gpu: gpu.profile.pcie_width - gpu.state.pcie_lanes_lost)
_scalar("nvmlDeviceGetPcieReplayCounter", lambda gpu: gpu.state.replays.value(gpu.now_ns))
_scalar("nvmlDeviceGetSupportedEventTypes", lambda gpu: gpu.profile.event_types)
_scalar("nvmlDeviceGetPersistenceMode", lambda gpu: 0)


@device_function("nvmlDeviceGetPciInfo_v3")
def _pci_info(gpu: Gpu, out: Any) -> None:
    info = out._obj
    info.domain, info.bus, info.device = 0, gpu.profile.buses[gpu.index], 0
    info.pciDeviceId = gpu.profile.pci_device_id
    info.busId = f"0000{gpu.node.pci_bus_id(gpu.index)}".upper().encode()


@device_function("nvmlDeviceGetMemoryInfo_v2")
def _memory_info(gpu: Gpu, out: Any) -> None:
    memory, profile = out._obj, gpu.profile
    used = gpu.state.leaked_mib + sum(gpu.state.processes.values())
    memory.total, memory.reserved, memory.used = (mib * MIB for mib in (profile.memory_mib, profile.reserved_mib, used))
    memory.free = memory.total - memory.reserved - memory.used


@device_function("nvmlDeviceGetUtilizationRates")
def _utilization(gpu: Gpu, out: Any) -> None:
    out._obj.gpu = 100 if gpu.state.processes else 0
    out._obj.memory = 0


@device_function("nvmlDeviceGetMarginTemperature")
def _margin(gpu: Gpu, out: Any) -> None:
    # The margin is judged against a limit, so noise may only add to it.
    noise = abs(gpu.node.noise(gpu.index, 1)) if gpu.state.heat_c == 0 else 0
    out._obj.marginTemperature = gpu.profile.idle_margin_c - gpu.state.heat_c + noise


@device_function("nvmlDeviceGetSramEccErrorStatus")
def _sram(gpu: Gpu, out: Any) -> None:
    out._obj.bThresholdExceeded = int(gpu.state.sram_threshold_exceeded)


@device_function("nvmlDeviceGetRemappedRows")
def _remapped_rows(gpu: Gpu, corrected: Any, uncorrected: Any, pending: Any, failed: Any) -> None:
    corrected._obj.value, uncorrected._obj.value = gpu.state.rows_corrected, gpu.state.rows_uncorrected
    pending._obj.value, failed._obj.value = int(gpu.state.rows_pending), int(gpu.state.rows_failed)


@device_function("nvmlDeviceGetRowRemapperHistogram")
def _histogram(gpu: Gpu, out: Any) -> None:
    out._obj.max = gpu.profile.remap_banks


@device_function("nvmlDeviceGetRepairStatus")
def _repair_status(gpu: Gpu, out: Any) -> None:
    out._obj.bChannelRepairPending = int(gpu.state.channel_repair_pending)
    out._obj.bTpcRepairPending = int(gpu.state.tpc_repair_pending)


@device_function("nvmlDeviceGetNvLinkState")
def _nvlink_state(gpu: Gpu, link: Any, out: Any) -> Return | None:
    number = int(getattr(link, "value", link))
    if not 0 <= number < gpu.profile.nvlinks:
        return Return.INVALID_ARGUMENT
    out._obj.value = int(number not in gpu.state.links_down)
    return None


@device_function("nvmlDeviceGetGpuFabricInfoV")
def _fabric_info(gpu: Gpu, out: Any) -> None:
    info = out._obj
    info.state, info.status, info.cliqueId = gpu.state.fabric_state, gpu.state.fabric_status, 0
    info.healthMask = _fabric_mask(gpu.profile.fabric_health_mask, gpu.state.fabric_health_bits)


def _fabric_mask(healthy: int, injected: int) -> int:
    """An injected field replaces the healthy one: a field of two bits says true (1) or false (2), never both."""
    for shift in range(0, 8, 2):
        if (injected >> shift) & 0x3:
            healthy &= ~(0x3 << shift)
    return healthy | injected


@device_function("nvmlDeviceGetRetiredPages")
def _retired_pages(_gpu: Gpu, *_arguments: Any) -> Return:
    return Return.NOT_SUPPORTED  # parts that remap rows retire no pages


@device_function("nvmlDeviceGetComputeRunningProcesses_v3")
def _processes(gpu: Gpu, count: Any, array: Any) -> Return | None:
    running = gpu.state.processes
    room, count._obj.value = count._obj.value, len(running)
    if not running:
        return None
    if array is None or room < len(running):
        return Return.INSUFFICIENT_SIZE
    for slot, (pid, mib) in zip(array, running.items(), strict=False):
        slot.pid, slot.usedGpuMemory = int(pid), mib * MIB
    return None


_UNSIGNED, _LONG, _SIGNED = ValueType.UNSIGNED_INT, ValueType.UNSIGNED_LONG_LONG, ValueType.SIGNED_INT
FIELDS: dict[int, tuple[ValueType, Callable[[Gpu], int]]] = {
    Field.GET_GPU_RECOVERY_ACTION: (_UNSIGNED, lambda gpu: gpu.state.recovery_action),
    Field.CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: (_LONG, lambda gpu: gpu.state.thermal_slowdown.value(gpu.now_ns)),
    Field.CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: (_LONG, lambda gpu: gpu.state.power_brake.value(gpu.now_ns)),
    Field.PERF_POLICY_POWER: (_LONG, lambda gpu: gpu.profile.software_power_cap_ns),
    Field.NVLINK_LINK_COUNT: (_UNSIGNED, lambda gpu: gpu.profile.nvlinks),
    Field.TEMPERATURE_SLOWDOWN_TLIMIT: (_SIGNED, lambda gpu: gpu.profile.slowdown_margin_c),
    Field.TEMPERATURE_SHUTDOWN_TLIMIT: (_SIGNED, lambda gpu: gpu.profile.shutdown_margin_c),
}


@device_function("nvmlDeviceGetFieldValues")
def _field_values(gpu: Gpu, count: ctypes.c_int32, out: Any) -> None:
    """Each value has a return code of its own; the call as a whole succeeds."""
    for value in out._obj[: count.value]:
        known = FIELDS.get(value.fieldId)
        if known is None:
            value.nvmlReturn = Return.NOT_SUPPORTED
            continue
        kind, read = known
        value.valueType, value.nvmlReturn = kind, Return.SUCCESS
        setattr(value.value, VALUE_MEMBER[kind], read(gpu))
