"""An object in place of libnvidia-ml.so.1: `healthcheck.nvml.binding.install` puts it under the real pynvml wrappers."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from healthcheck.nvml.abi import Return
from healthcheck.simulated.events import EventSet
from healthcheck.simulated.functions import FUNCTIONS
from healthcheck.simulated.node import SimulatedNode

_DEVICE_BASE, _SET_BASE, _STRIDE = 0x10000, 0x1000000, 0x100  # addresses are names here; nobody follows them


class SimulatedLibrary:
    """Initialization is counted as NVML counts it; the node, and so its faults, outlive it."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self._references = 0
        self._sets: dict[int, EventSet] = {}
        self._sets_made = 0
        node.listen(self._put)

    def __getattr__(self, name: str) -> Any:
        """The C function of that name. AttributeError is what ctypes raises for a symbol that a library lacks."""
        if name not in FUNCTIONS:
            raise AttributeError(name)
        return partial(FUNCTIONS[name], self)

    @property
    def initialized(self) -> bool:
        return self._references > 0

    def retain(self) -> None:
        self._references += 1

    def release(self) -> bool:
        """False when it was not initialized. The last one out takes the event sets along."""
        if self._references == 0:
            return False
        self._references -= 1
        if self._references == 0:
            self._sets.clear()
        return True

    # --- handles

    def address_of(self, index: int) -> int:
        return _DEVICE_BASE + index * _STRIDE

    def index_of(self, handle: Any) -> int | None:
        index, rest = divmod(_address(handle) - _DEVICE_BASE, _STRIDE)
        return index if rest == 0 and 0 <= index < self.node.profile.gpus else None

    def write_address(self, place: Any, address: int) -> None:
        """Into a handle, or into a structure that begins with one."""
        ctypes.memmove(ctypes.byref(place), ctypes.byref(ctypes.c_void_p(address)), ctypes.sizeof(ctypes.c_void_p))

    # --- event sets

    def new_event_set(self) -> int:
        with self.node.lock:
            self._sets_made += 1
            address = _SET_BASE + self._sets_made * _STRIDE
            self._sets[address] = EventSet(self.node.lock)
            return address

    def event_set(self, handle: Any) -> EventSet | None:
        return self._sets.get(_address(handle))

    def drop_event_set(self, handle: Any) -> bool:
        with self.node.lock:
            return self._sets.pop(_address(handle), None) is not None

    def _put(self, index: int, xid: int) -> None:
        for event_set in self._sets.values():
            event_set.put(index, xid)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _init(library: SimulatedLibrary, _flags: Any = 0) -> Return:
    library.retain()
    return Return.SUCCESS


def _shutdown(library: SimulatedLibrary) -> Return:
    return Return.SUCCESS if library.release() else Return.UNINITIALIZED


def _error_string(_library: SimulatedLibrary, code: int) -> bytes:
    known = Return._value2member_map_.get(code)
    return (known.name.replace("_", " ").capitalize() if known else f"NVML error {code}").encode()


def _count(library: SimulatedLibrary, out: Any) -> Return:
    if not library.initialized:
        return Return.UNINITIALIZED
    out._obj.value = library.node.profile.gpus
    return Return.SUCCESS


def _handle_by_index(library: SimulatedLibrary, index: Any, out: Any) -> Return:
    if not library.initialized:
        return Return.UNINITIALIZED
    if index.value >= library.node.profile.gpus:
        return Return.INVALID_ARGUMENT
    if library.node.state.gpus[index.value].lost:
        return Return.GPU_IS_LOST
    library.write_address(out._obj, library.address_of(index.value))
    return Return.SUCCESS


def _driver_version(library: SimulatedLibrary, buffer: Any, _length: Any) -> Return:
    if not library.initialized:
        return Return.UNINITIALIZED
    buffer.value = library.node.profile.driver.encode()
    return Return.SUCCESS


FUNCTIONS.update(
    {
        "nvmlInitWithFlags": _init,
        "nvmlInit_v2": _init,
        "nvmlShutdown": _shutdown,
        "nvmlErrorString": _error_string,
        "nvmlDeviceGetCount_v2": _count,
        "nvmlDeviceGetHandleByIndex_v2": _handle_by_index,
        "nvmlSystemGetDriverVersion": _driver_version,
    }
)
