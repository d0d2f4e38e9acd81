"""XIDs as NVML reports them: one event set over all GPUs that still answer."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import pynvml

from healthcheck.nvml.abi import XID_EVENT, Return
from healthcheck.nvml.errors import LOST, UNSUPPORTED, translate

LOST_PAUSE_S = 0.1  # between two event sets when a GPU is lost, so that a driver that keeps failing costs no CPU


def address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class XidWaiter:
    """`handles` gives index -> handle of the GPUs of the moment; a GPU that comes back is registered again."""

    def __init__(self, handles: Callable[[], dict[int, Any]]) -> None:
        self._handles = handles
        self._registered: dict[int, int] = {}  # address -> index
        self._refused: set[int] = set()  # addresses that can't report XIDs
        self._set: Any = None
        self._renew()

    def wait(self, timeout_s: float) -> tuple[int, int] | None:
        """(GPU index, XID) of the next event, or None after `timeout_s`. Raises NvmlUnavailable or TelemetryError."""
        self._register_missing()
        try:
            data = pynvml.nvmlEventSetWait_v2(self._set, int(timeout_s * 1000))
        except pynvml.NVMLError as error:
            if error.value == Return.TIMEOUT:
                return None
            if error.value not in LOST:
                raise translate(error) from None
            # A set with a lost GPU in it answers nothing else any more, so the others need a new one.
            self._renew()
            time.sleep(min(timeout_s, LOST_PAUSE_S))
            return None
        return self._registered.get(address(data.device), -1), int(data.eventData)

    def close(self) -> None:
        if self._set is not None:
            pynvml.nvmlEventSetFree(self._set)
            self._set = None

    def _renew(self) -> None:
        old, self._registered = self._set, {}
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            raise translate(error) from None
        self._register_missing()
        if old is not None:
            pynvml.nvmlEventSetFree(old)

    def _register_missing(self) -> None:
        for index, handle in self._handles().items():
            where = address(handle)
            if where in self._registered or where in self._refused:
                continue
            try:
                pynvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, self._set)
            except pynvml.NVMLError as error:
                if error.value in UNSUPPORTED:
                    self._refused.add(where)
                continue
            self._registered[where] = index
