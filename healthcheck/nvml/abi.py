"""Numbers of NVML's binary interface that both the adapter and the simulated library need.

They are stated here because older Python bindings lack some of the names; a test holds them to the installed binding.
"""

from __future__ import annotations

from enum import IntEnum

XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
NO_INSTANCE = 0xFFFFFFFF  # GPU and compute instance of an event on a GPU without MIG
UNKNOWN_XID = 999  # what NVML reports for an XID it can't name


class Return(IntEnum):
    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    UNKNOWN = 999


class Field(IntEnum):
    """Identifiers for nvmlDeviceGetFieldValues."""

    PERF_POLICY_POWER = 74  # ns under the software power cap
    NVLINK_LINK_COUNT = 91
    TEMPERATURE_SHUTDOWN_TLIMIT = 193
    TEMPERATURE_SLOWDOWN_TLIMIT = 194
    GET_GPU_RECOVERY_ACTION = 230
    CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270  # ns
    CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN = 271  # ns


class ClockReason(IntEnum):
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""

    GPU_IDLE = 0x1
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    HW_THERMAL_SLOWDOWN = 0x40
    HW_POWER_BRAKE = 0x80


class RecoveryAction(IntEnum):
    """Values of field GET_GPU_RECOVERY_ACTION."""

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3
    DRAIN_AND_RESET = 4
    RECOVER_IMEX_DOMAIN = 5
    BUS_RESET = 6
    SYSTEM_REBOOT = 7


class FabricState(IntEnum):
    NOT_SUPPORTED = 0
    NOT_STARTED = 1
    IN_PROGRESS = 2
    COMPLETED = 3


class FabricHealth(IntEnum):
    """Shifts of the two-bit fields of the fabric's health mask: 0 not supported, 1 true, 2 false."""

    DEGRADED_BANDWIDTH = 0
    ROUTE_RECOVERY = 2
    ROUTE_UNHEALTHY = 4
    ACCESS_TIMEOUT_RECOVERY = 6


FABRIC_CONFIGURATION_SHIFT = 8  # four bits: 0 not supported, 1 none, above: what is wrong
FABRIC_CONFIGURATION_MASK = 0xF


class ValueType(IntEnum):
    """Which member of a field's value union holds it."""

    DOUBLE = 0
    UNSIGNED_INT = 1
    UNSIGNED_LONG = 2
    UNSIGNED_LONG_LONG = 3
    SIGNED_LONG_LONG = 4
    SIGNED_INT = 5
    UNSIGNED_SHORT = 6


VALUE_MEMBER = {
    ValueType.DOUBLE: "dVal",
    ValueType.UNSIGNED_INT: "uiVal",
    ValueType.UNSIGNED_LONG: "ulVal",
    ValueType.UNSIGNED_LONG_LONG: "ullVal",
    ValueType.SIGNED_LONG_LONG: "sllVal",
    ValueType.SIGNED_INT: "siVal",
    ValueType.UNSIGNED_SHORT: "usVal",
}
