"""The two threads of a monitor that ask the driver: one looks in rounds, one waits for XIDs. Either may hang for good."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from healthcheck.desk import HANG, Desk, Message
from healthcheck.finding import Finding
from healthcheck.telemetry import Telemetry, TelemetryError

XID_WAIT_S = 1.0  # a wait ends this often, to register GPUs that came back
RETRY_S = 1.0  # after a failed call
START_DEADLINE_NS = 25 * 10**9  # a driver without persistence initializes eight GPUs in many seconds


@dataclass(frozen=True)
class Probe:
    id: str | int
    idle: bool


def probed(probe: Probe, findings: list[Finding]) -> Message:
    ok = not any(finding.blocks for finding in findings)
    return {"type": "probed", "id": probe.id, "ok": ok, "findings": [finding.as_json() for finding in findings]}


class Watch:
    """`refuse` is called when there is nothing to watch; it does not return."""

    def __init__(
        self,
        connect: Callable[[], Telemetry],
        desk: Desk,
        say: Callable[[Message], None],
        refuse: Callable[[TelemetryError], NoReturn],
        interval_s: float,
        deadline_s: float,
    ) -> None:
        self._connect = connect
        self._telemetry: Telemetry
        self._desk = desk
        self._say = say
        self._refuse = refuse
        self._interval_s = interval_s
        self._deadline_ns = int(deadline_s * 1e9)
        self._wake = threading.Event()
        self._asked: queue.SimpleQueue[Probe] = queue.SimpleQueue()
        self._unanswered: dict[str | int, Probe] = {}  # popped by whoever answers: the round or the deadline
        self._patience_ns = 0  # a clock that stands still while this process is stopped or starved
        self._overdue_ns = 0  # when the look under way counts as hung; 0: none is

    def start(self) -> None:
        self._overdue_ns = START_DEADLINE_NS
        threading.Thread(target=self._rounds, name="rounds", daemon=True).start()

    def look_now(self) -> None:
        self._wake.set()

    def probe(self, id: str | int, idle: bool) -> None:
        """The answer, `probed`, comes from a look that begins after this call, or when a look counts as hung."""
        probe = self._unanswered[id] = Probe(id, idle)
        self._asked.put(probe)
        self._wake.set()

    def check_deadlines(self, passed_ns: int) -> None:
        """For the thread that never asks the driver: report a hang, and answer the probes that wait behind it.

        `passed_ns` is the time since the last call, as far as this process was running.
        """
        self._patience_ns += passed_ns
        if not self._overdue_ns or self._patience_ns < self._overdue_ns:
            return
        self._desk.take_hang()
        for probe in list(self._unanswered.values()):
            if self._answer(probe):
                self._say(probed(probe, [HANG]))

    def _answer(self, probe: Probe) -> bool:
        """True for the one thread that may answer."""
        return self._unanswered.pop(probe.id, None) is not None

    def _begin(self) -> None:
        """Registers for XIDs before it says ready, so that none is missed from then on."""
        try:
            self._telemetry = self._connect()
            first = self._telemetry.snapshot()
        except TelemetryError as error:
            self._refuse(error)
        self._overdue_ns = 0
        self._take_xid(0.0)
        names = sorted({gpu.identity.name for gpu in first.gpus if isinstance(gpu.identity.name, str)})
        self._say({"type": "ready", "gpus": len(first.gpus), "name": ", ".join(names)})
        threading.Thread(target=self._xids, name="xids", daemon=True).start()

    def _rounds(self) -> None:
        self._begin()
        number, due = 0, time.monotonic()
        while True:
            self._wake.clear()
            number += 1
            self._round(number)
            due = max(due + self._interval_s, time.monotonic())
            while self._wake.wait(max(0.0, due - time.monotonic())):
                self._wake.clear()
                self._look()

    def _round(self, number: int) -> None:
        began = time.perf_counter()
        self._look()
        self._say({"type": "round", "round": number, "ms": round((time.perf_counter() - began) * 1e3, 3)})

    def _look(self) -> None:
        """One fresh look for the checks and for all probes that were asked for before it began."""
        probes = [self._asked.get_nowait() for _ in range(self._asked.qsize())]
        self._overdue_ns = self._overdue_ns or self._patience_ns + self._deadline_ns
        try:
            snapshot = self._telemetry.snapshot()
        except TelemetryError as error:
            self._say({"type": "error", "error": str(error)})
            for probe in probes:
                self._asked.put(probe)
            return  # still overdue at the same moment: a driver that went away is no better than one that hangs
        self._overdue_ns = 0
        self._desk.take_look(snapshot)
        for probe in probes:
            if self._answer(probe):
                self._say(probed(probe, self._desk.judge(snapshot, probe.idle)))

    def _xids(self) -> None:
        while True:
            self._take_xid(XID_WAIT_S)

    def _take_xid(self, timeout_s: float) -> None:
        try:
            event = self._telemetry.wait_xid(timeout_s)
        except TelemetryError as error:
            self._say({"type": "error", "error": str(error)})
            time.sleep(RETRY_S)
            return
        if event is not None and self._desk.take_xid(event):
            self._wake.set()
