"""One GPU's readings through the pynvml wrappers."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml

from healthcheck.nvml.abi import VALUE_MEMBER, Field, Return
from healthcheck.nvml.errors import LOST, UNSUPPORTED, translate
from healthcheck.telemetry import (
    Clocks,
    Ecc,
    Fabric,
    GpuSnapshot,
    HandleState,
    Identity,
    Memory,
    Pcie,
    Power,
    Process,
    Reading,
    Repair,
    Skipped,
    Thermal,
)

_NO_WRAPPER = Skipped("the Python binding does not know this call")
_SLOW_FIELDS = (Field.TEMPERATURE_SLOWDOWN_TLIMIT, Field.TEMPERATURE_SHUTDOWN_TLIMIT, Field.NVLINK_LINK_COUNT)
_FAST_FIELDS = (
    Field.GET_GPU_RECOVERY_ACTION,
    Field.CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    Field.CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
    Field.PERF_POLICY_POWER,
)
Fields = dict[Field, Reading[int]]


class Reader:
    """Calls getters on one handle: unsupported becomes Skipped, a lost GPU raises GpuLost, the rest goes to `errors`."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.errors: list[str] = []

    def __call__(self, name: str, *arguments: Any) -> Any:
        wrapper = getattr(pynvml, name, None)
        if wrapper is None:
            return _NO_WRAPPER
        try:
            answer = wrapper(self.handle, *arguments)
        except pynvml.NVMLError as error:
            return self._skip(name, error)
        return answer.decode() if isinstance(answer, bytes) else answer

    def fields(self, wanted: tuple[Field, ...]) -> Fields:
        values = self("nvmlDeviceGetFieldValues", list(wanted))
        if isinstance(values, Skipped):
            return dict.fromkeys(wanted, values)
        return {field: _field_value(value) for field, value in zip(wanted, values, strict=True)}

    def struct(self, name: str, struct_name: str) -> Any:
        """For getters that fill a structure of the caller's: the structure, or Skipped."""
        struct_type = getattr(pynvml, struct_name, None)
        if struct_type is None:
            return _NO_WRAPPER
        struct = struct_type()
        answer = self(name, ctypes.byref(struct))
        return answer if isinstance(answer, Skipped) else struct

    def _skip(self, name: str, error: pynvml.NVMLError) -> Skipped:
        if error.value in LOST:
            raise translate(error) from None
        if error.value not in UNSUPPORTED:
            self.errors.append(f"{name}: {error}")
        return Skipped(f"{name}: {error}")


def _field_value(value: Any) -> Reading[int]:
    if value.nvmlReturn != Return.SUCCESS:
        return Skipped(f"field {value.fieldId}: NVML return code {value.nvmlReturn}")
    member = VALUE_MEMBER.get(value.valueType)
    if member is None:
        return Skipped(f"field {value.fieldId}: value type {value.valueType}")
    return int(getattr(value.value, member))


def _member(struct: Any, name: str) -> Any:
    return struct if isinstance(struct, Skipped) else getattr(struct, name)


def _flag(value: Reading[int]) -> Reading[bool]:
    return value if isinstance(value, Skipped) else bool(value)


def _item(values: Any, index: int) -> Any:
    return values if isinstance(values, Skipped) else values[index]


class Constants:
    """What does not change while the driver holds the GPU: read once a handle."""

    def __init__(self, read: Reader) -> None:
        self.identity = _identity(read)
        self.fields = read.fields(_SLOW_FIELDS)
        self.sm_max_mhz = read("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM)
        self.memory_max_mhz = read("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM)
        self.generation_max = read("nvmlDeviceGetMaxPcieLinkGeneration")
        self.width_max = read("nvmlDeviceGetMaxPcieLinkWidth")


def _identity(read: Reader) -> Identity:
    pci = read("nvmlDeviceGetPciInfo")
    bus_id = pci if isinstance(pci, Skipped) else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
    return Identity(
        name=read("nvmlDeviceGetName"),
        uuid=read("nvmlDeviceGetUUID"),
        serial=read("nvmlDeviceGetSerial"),
        pci_bus_id=bus_id,
        pci_device_id=_member(pci, "pciDeviceId"),
        vbios=read("nvmlDeviceGetVbiosVersion"),
        gsp_firmware=read("nvmlDeviceGetGspFirmwareVersion"),
    )


def read_gpu(read: Reader, index: int, at_ns: int, constants: Constants) -> GpuSnapshot:
    """Everything that may change, fresh. Raises GpuLost."""
    fields = read.fields(_FAST_FIELDS)
    return GpuSnapshot(
        index=index,
        at_ns=at_ns,
        handle=HandleState.OK,
        identity=constants.identity,
        memory=_memory(read),
        utilization_percent=_member(read("nvmlDeviceGetUtilizationRates"), "gpu"),
        clocks=_clocks(read, fields, constants),
        thermal=_thermal(read, constants),
        power=Power(read("nvmlDeviceGetPowerUsage"), read("nvmlDeviceGetEnforcedPowerLimit")),
        ecc=_ecc(read),
        repair=_repair(read),
        recovery_action=fields[Field.GET_GPU_RECOVERY_ACTION],
        links=_links(read, constants.fields[Field.NVLINK_LINK_COUNT]),
        fabric=_fabric(read),
        pcie=_pcie(read, constants),
        processes=_processes(read),
        errors=tuple(read.errors),
    )


def read_recovery_action(read: Reader) -> Reading[int]:
    return read.fields((Field.GET_GPU_RECOVERY_ACTION,))[Field.GET_GPU_RECOVERY_ACTION]


def _memory(read: Reader) -> Memory:
    memory = read("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    return Memory(*(_member(memory, name) for name in ("total", "reserved", "used", "free")))


def _clocks(read: Reader, fields: Fields, constants: Constants) -> Clocks:
    return Clocks(
        sm_mhz=read("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        sm_max_mhz=constants.sm_max_mhz,
        memory_mhz=read("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        memory_max_mhz=constants.memory_max_mhz,
        event_reasons=read("nvmlDeviceGetCurrentClocksEventReasons"),
        thermal_slowdown_ns=fields[Field.CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN],
        power_brake_ns=fields[Field.CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN],
        software_power_cap_ns=fields[Field.PERF_POLICY_POWER],
    )


def _thermal(read: Reader, constants: Constants) -> Thermal:
    return Thermal(
        gpu_c=read("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        margin_c=read("nvmlDeviceGetMarginTemperature"),
        slowdown_margin_c=_signed(constants.fields[Field.TEMPERATURE_SLOWDOWN_TLIMIT]),
        shutdown_margin_c=_signed(constants.fields[Field.TEMPERATURE_SHUTDOWN_TLIMIT]),
    )


def _signed(value: Reading[int]) -> Reading[int]:
    """T.Limit points are negative; some drivers hand them out in an unsigned 32-bit member."""
    return value - 2**32 if isinstance(value, int) and value >= 2**31 else value


def _ecc(read: Reader) -> Ecc:
    volatile = pynvml.NVML_VOLATILE_ECC
    sram = read.struct("nvmlDeviceGetSramEccErrorStatus", "c_nvmlEccSramErrorStatus_v1_t")
    return Ecc(
        corrected=read("nvmlDeviceGetTotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, volatile),
        uncorrected=read("nvmlDeviceGetTotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, volatile),
        sram_threshold_exceeded=_flag(_member(sram, "bThresholdExceeded")),
    )


def _repair(read: Reader) -> Repair:
    rows = read("nvmlDeviceGetRemappedRows")
    repair = read("nvmlDeviceGetRepairStatus")
    return Repair(
        rows_corrected=_item(rows, 0),
        rows_uncorrected=_item(rows, 1),
        rows_pending=_flag(_item(rows, 2)),
        rows_failed=_flag(_item(rows, 3)),
        channel_pending=_flag(_item(repair, 0)),
        tpc_pending=_flag(_item(repair, 1)),
    )


def _links(read: Reader, count: Reading[int]) -> Reading[tuple[bool, ...]]:
    """The part has fewer links than NVML's 36; without a count none can be told from a missing one."""
    if isinstance(count, Skipped):
        return count
    states = []
    for link in range(count):
        state = read("nvmlDeviceGetNvLinkState", link)
        if isinstance(state, Skipped):
            return state
        states.append(bool(state))
    return tuple(states) if states else Skipped("the GPU has no NVLink")


def _fabric(read: Reader) -> Fabric:
    info = read.struct("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t")
    return Fabric(*(_member(info, name) for name in ("state", "status", "healthMask")))


def _pcie(read: Reader, constants: Constants) -> Pcie:
    return Pcie(
        generation=read("nvmlDeviceGetCurrPcieLinkGeneration"),
        generation_max=constants.generation_max,
        width=read("nvmlDeviceGetCurrPcieLinkWidth"),
        width_max=constants.width_max,
        replays=read("nvmlDeviceGetPcieReplayCounter"),
    )


def _processes(read: Reader) -> Reading[tuple[Process, ...]]:
    found = read("nvmlDeviceGetComputeRunningProcesses")
    if isinstance(found, Skipped):
        return found
    return tuple(Process(p.pid, _used(p.usedGpuMemory)) for p in found)


def _used(value: int | None) -> Reading[int]:
    return Skipped("the driver does not say") if value is None else value
