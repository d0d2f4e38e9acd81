"""NVML's event sets over a simulated node.

A set holds the events of the GPUs registered with it, from their registration on, each set its own copy. A wait blocks
until an event or its timeout; when a GPU of the set is lost and no event is left, it says so.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from healthcheck.nvml.abi import NO_INSTANCE, XID_EVENT, Return
from healthcheck.simulated.functions import FUNCTIONS, Gpu, device_function

if TYPE_CHECKING:
    from healthcheck.simulated.library import SimulatedLibrary

MAX_QUEUED = 100_000  # a set nobody waits on must not grow for good


class EventSet:
    """Guarded by the node's lock."""

    def __init__(self, lock: threading.RLock) -> None:
        self.arrived = threading.Condition(lock)
        self.gpus: set[int] = set()
        self.queue: deque[tuple[int, int]] = deque(maxlen=MAX_QUEUED)

    def put(self, index: int, xid: int) -> None:
        if index in self.gpus:
            self.queue.append((index, xid))
            self.arrived.notify_all()


def _create(library: SimulatedLibrary, out: Any) -> Return:
    if not library.initialized:
        return Return.UNINITIALIZED
    library.write_address(out._obj, library.new_event_set())
    return Return.SUCCESS


def _free(library: SimulatedLibrary, event_set: Any) -> Return:
    return Return.SUCCESS if library.drop_event_set(event_set) else Return.INVALID_ARGUMENT


def _wait(library: SimulatedLibrary, event_set: Any, out: Any, timeout_ms: Any) -> Return:
    found = library.event_set(event_set)
    if not library.initialized:
        return Return.UNINITIALIZED
    if found is None:
        return Return.INVALID_ARGUMENT
    gpus = library.node.state.gpus

    def answer() -> bool:
        return bool(found.queue) or any(gpus[index].lost for index in found.gpus)

    with library.node.lock:
        if not found.arrived.wait_for(answer, timeout_ms.value / 1000):
            return Return.TIMEOUT
        if not found.queue:
            return Return.GPU_IS_LOST
        index, xid = found.queue.popleft()
    data = out._obj
    library.write_address(data, library.address_of(index))  # `device` is the structure's first member
    data.eventType, data.eventData = XID_EVENT, xid
    data.gpuInstanceId = data.computeInstanceId = NO_INSTANCE
    return Return.SUCCESS


@device_function("nvmlDeviceRegisterEvents")
def _register(gpu: Gpu, types: Any, event_set: Any) -> Return | None:
    found = gpu.library.event_set(event_set)
    if found is None:
        return Return.INVALID_ARGUMENT
    if types.value & ~gpu.profile.event_types:
        return Return.NOT_SUPPORTED
    if types.value & XID_EVENT:
        found.gpus.add(gpu.index)
    return None


FUNCTIONS.update(
    {
        "nvmlEventSetCreate": _create,
        "nvmlEventSetFree": _free,
        "nvmlEventSetWait_v2": _wait,
        "nvmlEventSetWait": _wait,
    }
)
