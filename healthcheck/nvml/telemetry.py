"""Telemetry of this machine's GPUs through NVML."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml

from healthcheck.nvml import binding
from healthcheck.nvml.errors import translate
from healthcheck.nvml.events import XidWaiter
from healthcheck.nvml.reading import Constants, Reader, read_gpu, read_recovery_action
from healthcheck.telemetry import (
    GpuLost,
    GpuSnapshot,
    HandleState,
    NodeSnapshot,
    Reading,
    Skipped,
    TelemetryError,
    XidEvent,
    silent_gpu,
)
from healthcheck.xid import RECOVERY_ACTION_CHANGED

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers; bridges and audio functions are other classes


def pci_gpu_count(devices: Path = PCI_DEVICES) -> Reading[int]:
    """NVIDIA GPUs on the PCI bus, with or without a driver."""
    try:
        entries = list(devices.iterdir())
        return sum(1 for entry in entries if _is_nvidia_gpu(entry))
    except OSError as error:
        return Skipped(f"the PCI bus can't be read: {error}")


def _is_nvidia_gpu(entry: Path) -> bool:
    vendor = (entry / "vendor").read_text().strip()
    return vendor == NVIDIA_VENDOR and (entry / "class").read_text().startswith(DISPLAY_CLASSES)


class NvmlTelemetry:
    """See healthcheck.telemetry.Telemetry. Raises NvmlUnavailable when there is no driver or no GPU to talk to."""

    def __init__(
        self,
        pci_gpus: Callable[[], Reading[int]] = pci_gpu_count,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        binding.initialize()
        self._pci_gpus = pci_gpus
        self._now_ns = now_ns
        self._handles: dict[int, Any] = {}
        self._constants: dict[int, Constants] = {}
        self._waiter: XidWaiter | None = None
        self._find_handles(self.gpu_count())

    def gpu_count(self) -> int:
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            raise translate(error) from None

    def snapshot(self) -> NodeSnapshot:
        count = self.gpu_count()
        self._find_handles(count)
        gpus = tuple(self.gpu(index) for index in range(count))
        return NodeSnapshot(self._now_ns(), self._driver(), self._pci_gpus(), gpus)

    def gpu(self, index: int) -> GpuSnapshot:
        """One GPU, fresh; a lost one comes back with its handle state."""
        constants = self._constants.get(index)
        identity = constants.identity if constants else None
        try:
            reader = Reader(self._handle(index))
            constants = constants or self._learn(index, reader)
            return read_gpu(reader, index, self._now_ns(), constants)
        except GpuLost as error:
            self._constants.pop(index, None)
            state = HandleState.RESET_REQUIRED if error.reset_required else HandleState.LOST
            return silent_gpu(index, self._now_ns(), state, str(error), identity)
        except TelemetryError as error:
            silent = silent_gpu(index, self._now_ns(), HandleState.FAILED, str(error), identity)
            return replace(silent, errors=(str(error),))

    def wait_xid(self, timeout_s: float) -> XidEvent | None:
        if self._waiter is None:
            self._waiter = XidWaiter(lambda: dict(self._handles))
        found = self._waiter.wait(timeout_s)
        if found is None:
            return None
        gpu, xid = found
        # Only the driver's own summary needs its value, and a getter may block: ask for no other.
        action = self._recovery_action(gpu) if xid == RECOVERY_ACTION_CHANGED else None
        return XidEvent(gpu, xid, self._now_ns(), action)

    def close(self) -> None:
        if self._waiter is not None:
            self._waiter.close()
        binding.shut_down()

    def _learn(self, index: int, reader: Reader) -> Constants:
        self._constants[index] = Constants(reader)
        return self._constants[index]

    def _handle(self, index: int) -> Any:
        if index not in self._handles:
            try:
                self._handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
            except pynvml.NVMLError as error:
                raise translate(error) from None
        return self._handles[index]

    def _find_handles(self, count: int) -> None:
        """A changed count renumbers the GPUs: nothing known of an index holds any more."""
        if self._handles and len(self._handles) > count:
            self._handles.clear()
            self._constants.clear()
        for index in range(count):
            try:
                self._handle(index)
            except GpuLost:
                continue

    def _driver(self) -> Reading[str]:
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            return Skipped(str(error))

    def _recovery_action(self, index: int) -> int | None:
        try:
            action = read_recovery_action(Reader(self._handle(index)))
        except TelemetryError:
            return None
        return None if isinstance(action, Skipped) else action
