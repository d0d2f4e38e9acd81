"""`python -m healthcheck.monitor`: watches the GPUs of this node for a supervisor.

NDJSON out: ready, round, finding (new, changed, or with "cleared": true), probed, done, error. NDJSON in: probe, and for
a simulated node inject, reset and reboot. End of file on stdin ends it.

The main thread reads commands and keeps deadlines, and never asks the driver: whatever hangs, it goes on talking.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from healthcheck.desk import Desk, Message
from healthcheck.simulated.faults import FaultError
from healthcheck.simulated.node import SimulatedNode
from healthcheck.simulated.state import StateFileError
from healthcheck.sources import Source, open_source
from healthcheck.spec import SPECS
from healthcheck.telemetry import TelemetryError
from healthcheck.watch import Watch

EXIT_BAD_STATE, EXIT_NO_GPU = 1, 4
MAX_LINE_BYTES = 65536
STDIN, STDOUT = 0, 1


class Voice:
    """Whole lines, each in one piece, whoever speaks. A reader that went away ends the process quietly."""

    def __init__(self, descriptor: int = STDOUT) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def say(self, body: Message) -> None:
        line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except ConnectionError:
                os._exit(0)

    def refuse(self, error: TelemetryError) -> NoReturn:
        """There is nothing to watch: say so and end, from whatever thread."""
        self.say({"type": "error", "error": str(error)})
        os._exit(EXIT_NO_GPU)


class Commands:
    """Carries out what the supervisor asks for; an answer or an error line follows every one."""

    def __init__(self, source: Source, desk: Desk, watch: Watch, voice: Voice) -> None:
        self._node = source.node
        self._desk = desk
        self._watch = watch
        self._voice = voice
        self._handlers = {
            "probe": self._probe,
            "inject": self._inject,
            "reset": self._reset,
            "reboot": self._reboot,
        }

    def take(self, line: bytes) -> None:
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise ValueError("not an object")
        except ValueError as error:
            self._fail(f"not a line of JSON: {error}")
            return
        handler = self._handlers.get(str(command.get("type")))
        if handler is None:
            self._fail(f"unknown command {command.get('type')!r}: one of {', '.join(self._handlers)}", command)
            return
        try:
            handler(command)
        except FaultError as error:
            self._fail(str(error), command)

    def _probe(self, command: Message) -> None:
        name = command.get("id", "")
        if not isinstance(name, str | int):
            raise FaultError(f"the id of a probe must be a string or a number, not {name!r}")
        self._watch.probe(name, command.get("idle") is True)

    def _inject(self, command: Message) -> None:
        self._simulated().inject(command)
        self._done(command)

    def _reset(self, command: Message) -> None:
        self._simulated().reset(command.get("gpu", 0))
        self._desk.was_reset(command.get("gpu", 0))
        self._done(command)
        self._watch.look_now()

    def _reboot(self, command: Message) -> None:
        self._simulated().reboot()
        self._desk.was_reset()
        self._done(command)
        self._watch.look_now()

    def _simulated(self) -> SimulatedNode:
        if self._node is None:
            raise FaultError("only a simulated node can be injected, reset or rebooted from here")
        return self._node

    def _done(self, command: Message) -> None:
        self._voice.say({"type": "done", "command": command["type"], "gpu": command.get("gpu", -1)})

    def _fail(self, error: str, command: Message | None = None) -> None:
        name = {"command": str(command.get("type"))} if command else {}
        self._voice.say({"type": "error", "error": error, **name})


def lines(descriptor: int, tick_s: float) -> Iterator[bytes | None]:
    """Lines as they come, None at each tick without any; ends with the file."""
    kept = b""
    while True:
        if not select.select([descriptor], [], [], tick_s)[0]:
            yield None
            continue
        chunk = _read(descriptor)
        if not chunk:
            return
        *whole, kept = (kept + chunk).split(b"\n")
        kept = kept[-MAX_LINE_BYTES:]
        yield from (line for line in whole if line.strip())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_LINE_BYTES)
    except ConnectionError:
        return b""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m healthcheck.monitor", description="Watch the GPUs of this node.")
    parser.add_argument("--telemetry", choices=("nvml", "simulated"), default="nvml")
    parser.add_argument("--profile", choices=tuple(SPECS), default="", help="what the node should look like")
    parser.add_argument("--state", type=Path, help="file in which a simulated node keeps its faults")
    parser.add_argument("--seed", type=int, default=0, help="of a simulated node")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two rounds")
    parser.add_argument("--deadline", type=float, default=3.0, help="seconds after which NVML counts as hung")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    voice = Voice()
    try:
        source = open_source(options.telemetry, options.profile, options.state, options.seed)
    except StateFileError as error:
        voice.say({"type": "error", "error": str(error)})
        return EXIT_BAD_STATE
    desk = Desk(source.spec, voice.say)
    watch = Watch(source.connect, desk, voice.say, voice.refuse, options.interval, options.deadline)
    commands = Commands(source, desk, watch, voice)
    watch.start()
    tick_s = min(1.0, options.deadline / 4)
    before_ns = time.monotonic_ns()
    for line in lines(STDIN, tick_s):
        if line is not None:
            commands.take(line)
        now_ns = time.monotonic_ns()
        # A longer gap means that this process stood still, which is no fault of the driver's.
        watch.check_deadlines(min(now_ns - before_ns, int(2e9 * tick_s)))
        before_ns = now_ns
    return 0


if __name__ == "__main__":
    os._exit(main())  # a thread inside a hung driver call can't be joined
