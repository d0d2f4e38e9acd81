"""Speaks the worker protocol (docs/worker-protocol.md): JSON lines over a Unix socket, from a side thread.

The using threads never wait for the supervisor: what they say is queued, and sent when the line takes it. After a break
the thread connects again, greets, and repeats what still stands; a supervisor may so hear the same twice.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

NO_SUPERVISOR_EXIT = 75  # EX_TEMPFAIL
PATIENCE_S = 3.0  # without a supervisor, before the process ends itself
_MAX_LINE = 64 * 1024
_MAX_QUEUED = 4096  # lines kept while the supervisor doesn't read; the oldest are dropped
_RETRY_S = 0.05
# Said again after a reconnect: the newest of each key.
_STANDING = {"phase": "place", "left": "place", "progress": "progress", "checkpoint": "checkpoint", "bye": "bye"}

Message = dict[str, object]


class WorkerClient:
    """`greeting` makes the first line of each connection; `on_message` gets each line that comes, in the thread.

    After `patience_s` without a supervisor the thread calls `end` with exit code 75; `end` must not return.
    """

    def __init__(
        self,
        path: str,
        greeting: Callable[[], Message],
        on_message: Callable[[Message], None],
        *,
        patience_s: float = PATIENCE_S,
        end: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._patience_s = patience_s
        self._end = end
        self._path = path
        self._greeting = greeting
        self._on_message = on_message
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque(maxlen=_MAX_QUEUED)
        self._standing: dict[str, bytes] = {}
        self._drained = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._exit_code: int | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="worker-client", daemon=True).start()

    def send(self, message: Message) -> None:
        """Queue a message. Never blocks."""
        line = _encode(message)
        with self._lock:
            self._queue.append(line)
            self._drained.clear()
            if key := _STANDING.get(str(message["type"])):
                self._standing[key] = line
        try:
            self._wake_out.send(b"\0")
        except BlockingIOError:
            return  # it's awake already

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is sent; False when it isn't in time."""
        return self._drained.wait(timeout_s)

    def exit_after(self, message: Message, code: int) -> None:
        """Say a last word and end the process once it is sent, whatever the other threads do."""
        self._exit_code = code
        self.send(message)

    def _run(self) -> None:
        while True:
            line = self._connect()
            with line, selectors.DefaultSelector() as selector:
                self._converse(line, selector)

    def _connect(self) -> socket.socket:
        give_up_at = time.monotonic() + self._patience_s
        while True:
            attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                attempt.connect(self._path)
                return attempt
            except OSError:
                attempt.close()
            if time.monotonic() >= give_up_at:
                print("no supervisor, ending", file=sys.stderr, flush=True)
                self._end(NO_SUPERVISOR_EXIT)
            time.sleep(_RETRY_S)

    def _converse(self, line: socket.socket, selector: selectors.BaseSelector) -> None:
        line.setblocking(False)
        selector.register(line, selectors.EVENT_READ)
        selector.register(self._wake_in, selectors.EVENT_READ)
        with self._lock:
            said = [text for text in self._standing.values() if text not in self._queue]
            unsent = b"".join([_encode(self._greeting()), *said])
        received = b""
        try:
            while True:
                unsent = self._write(line, unsent)
                selector.modify(line, selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0))
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_in in ready:
                    self._wake_in.recv(4096)
                if line in ready:
                    received = self._read(line, received)
        except ConnectionError:
            return

    def _write(self, line: socket.socket, unsent: bytes) -> bytes:
        """Send what the line takes; returns what it didn't."""
        while True:
            if not unsent:
                with self._lock:
                    if not self._queue:
                        self._drained.set()
                        break
                    unsent = self._queue.popleft()
            try:
                unsent = unsent[line.send(unsent) :]
            except BlockingIOError:
                return unsent
        if self._exit_code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            self._end(self._exit_code)
        return unsent

    def _read(self, line: socket.socket, received: bytes) -> bytes:
        """Handle all whole lines; returns the rest. Raises ConnectionError at the end of the stream."""
        try:
            chunk = line.recv(_MAX_LINE)
        except BlockingIOError:
            return received
        if not chunk:
            raise ConnectionResetError("the supervisor closed the line")
        *lines, rest = (received + chunk).split(b"\n")
        for text in lines:
            message = json.loads(text)
            if isinstance(message, dict):
                self._on_message(message)
        if len(rest) > _MAX_LINE:
            raise ConnectionAbortedError("a line of the supervisor is too long")
        return rest


def _encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
