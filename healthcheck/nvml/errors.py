"""Where the vendor's errors end: each becomes one of healthcheck.telemetry's, with words for users."""

from __future__ import annotations

import pynvml

from healthcheck.nvml.abi import Return
from healthcheck.telemetry import GpuLost, NvmlUnavailable, TelemetryError

UNSUPPORTED = frozenset(
    {
        Return.NOT_SUPPORTED,
        Return.NO_PERMISSION,
        Return.NOT_FOUND,
        Return.FUNCTION_NOT_FOUND,
        Return.ARGUMENT_VERSION_MISMATCH,
        Return.DEPRECATED,
    }
)
LOST = frozenset({Return.GPU_IS_LOST, Return.RESET_REQUIRED})
UNAVAILABLE = {
    Return.LIBRARY_NOT_FOUND: "no NVIDIA driver on this machine: libnvidia-ml.so.1 was not found",
    Return.DRIVER_NOT_LOADED: "the NVIDIA driver is installed but its kernel module is not loaded: try `modprobe nvidia`",
    Return.LIB_RM_VERSION_MISMATCH: "the NVIDIA library and kernel module are of different versions: reboot the machine",
    Return.NO_PERMISSION: "no permission to talk to the NVIDIA driver: check the rights of /dev/nvidia*",
    Return.OPERATING_SYSTEM: "the operating system blocks the NVIDIA driver: check cgroups and /dev/nvidia*",
    Return.UNINITIALIZED: "NVML is not initialized",
}


def translate(error: pynvml.NVMLError) -> TelemetryError:
    """The error of ours that says the same."""
    code = error.value
    if code in LOST:
        needs_reset = code == Return.RESET_REQUIRED
        return GpuLost("the GPU must be reset" if needs_reset else "the GPU is lost", reset_required=needs_reset)
    if code in UNAVAILABLE:
        return NvmlUnavailable(UNAVAILABLE[code])
    return TelemetryError(f"NVML failed: {error} (code {code})")
