"""A simulated node: state, the rules by which faults, resets and reboots change it, and whom they wake.

One lock guards all of it. Whoever changes the state saves it before anybody hears of the change.
"""

from __future__ import annotations

import copy
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from healthcheck.simulated import state as states
from healthcheck.simulated.faults import FAULTS, FaultError, Injection, apply_xid, log_line, recovery_line
from healthcheck.simulated.profile import PROFILES
from healthcheck.simulated.state import GpuState, NodeState
from healthcheck.xid import RECOVERY_ACTION_CHANGED

XidListener = Callable[[int, int], None]  # GPU index, XID; called with the node's lock held


class SimulatedNode:
    """`path` keeps the state across processes; None: this process alone. `now_ns` is monotonic."""

    def __init__(
        self,
        profile: str = "hgx_b200",
        seed: int = 0,
        path: Path | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.lock = threading.RLock()
        self.unhung = threading.Condition(self.lock)
        self.now_ns = now_ns
        self._path = path
        self._listeners: list[XidListener] = []
        self.state = self._restore(profile, seed)
        self.profile = PROFILES[self.state.profile]
        self._noise = [random.Random(f"{self.state.seed}/{index}") for index in range(self.profile.gpus)]
        self._save()

    def _restore(self, profile: str, seed: int) -> NodeState:
        try:
            if self._path is not None:
                return states.load(self._path)
        except FileNotFoundError:
            pass
        return NodeState(profile, seed, [GpuState() for _ in range(PROFILES[profile].gpus)])

    def listen(self, listener: XidListener) -> None:
        self._listeners.append(listener)

    # --- what a part is

    def uuid(self, index: int) -> str:
        name = f"holdfast/{self.state.profile}/{self.state.seed}/{index}"
        return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, name)}"

    def pci_bus_id(self, index: int) -> str:
        return f"0000:{self.profile.buses[index]:02x}:00.0"

    def noise(self, index: int, spread: int) -> int:
        """A small seeded disturbance, so that no two looks are quite alike."""
        return self._noise[index].randint(-spread, spread)

    # --- what happens to it

    def inject(self, request: dict[str, Any]) -> None:
        """`{"gpu": 3, "xid": 48}` or `{"gpu": 3, "fault": "nvlink", "link": 5, "sticky": true}`. Raises FaultError.

        A sticky fault comes back after every reset and reboot; "clear" puts a healthy part in the GPU's place.
        """
        with self.lock:
            index = self._index(request)
            fault = request.get("fault", "xid" if "xid" in request else "")
            if fault == "clear":
                self._replace(index, GpuState())
                return
            if fault not in FAULTS:
                raise FaultError(f"unknown fault {fault!r}: one of {', '.join(sorted([*FAULTS, 'clear']))}")
            xids = self._apply(index, fault, request)
            if request.get("sticky") is True:
                self.state.gpus[index].sticky.append({k: v for k, v in request.items() if k != "sticky"})
            self._save()
            self._tell(index, xids)

    def reset(self, index: int) -> None:
        """Raises FaultError for a GPU off the bus or a hung driver: on a real node only a reboot helps these."""
        with self.lock:
            gpu = self.state.gpus[self._index({"gpu": index})]
            if gpu.lost or gpu.hung:
                raise FaultError(f"GPU {index} can't be reset: it is {'lost' if gpu.lost else 'hung'}; reboot the node")
            self._replace(index, states.after_reset(gpu))
            self._reapply(index)

    def reboot(self) -> None:
        with self.lock:
            self.state.boots += 1
            for index, gpu in enumerate(self.state.gpus):
                self._replace(index, states.after_reboot(gpu))
            for index in range(len(self.state.gpus)):
                self._reapply(index)

    def _apply(self, index: int, fault: str, request: dict[str, Any]) -> list[int]:
        """The XIDs to tell of, in the order of the log."""
        gpu = copy.deepcopy(self.state.gpus[index])  # a request refused half way must change nothing
        was = gpu.recovery_action
        injection = Injection(gpu, self.profile, self.now_ns(), request)
        link = injection.integer("link", 0, high=self.profile.nvlinks - 1)
        xids = FAULTS[fault](injection)
        self.state.gpus[index] = gpu
        for xid in xids:
            apply_xid(gpu, xid, link)
            self._log(log_line(self.pci_bus_id(index), xid))
        if gpu.recovery_action == was:
            return xids
        self._log(recovery_line(self.pci_bus_id(index), was, gpu.recovery_action))
        return [*xids, RECOVERY_ACTION_CHANGED]

    def _reapply(self, index: int) -> None:
        for request in self.state.gpus[index].sticky:
            self._tell(index, self._apply(index, request.get("fault", "xid"), request))
        self._save()

    def _replace(self, index: int, gpu: GpuState) -> None:
        self.state.gpus[index] = gpu
        self._save()
        self.unhung.notify_all()

    def _index(self, request: dict[str, Any]) -> int:
        index = request.get("gpu", 0)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.profile.gpus:
            raise FaultError(f"gpu must be from 0 to {self.profile.gpus - 1}, not {index!r}")
        return index

    def _log(self, line: str) -> None:
        self.state.kernel_log = [*self.state.kernel_log[-(states.KERNEL_LOG_LINES - 1) :], line]

    def _tell(self, index: int, xids: list[int]) -> None:
        for xid in xids:
            for listener in self._listeners:
                listener(index, xid)

    def _save(self) -> None:
        if self._path is not None:
            states.save(self.state, self._path)
