"""Frames of the link: a 4-byte big-endian length, then one JSON object, at most 4 MiB."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec

MAX_FRAME_BYTES = 4 * 1024 * 1024
# A peer this far behind is not reading: better a broken line, which heals by a new hello, than memory without end.
MAX_UNSENT_BYTES = 4 * MAX_FRAME_BYTES

T = TypeVar("T")


class FrameError(ValueError):
    """What came is no frame, no message, or too large."""


def encode(message: msgspec.Struct) -> bytes:
    """Frame of one message. FrameError when it is larger than the link allows."""
    payload = msgspec.json.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a {type(message).__name__} of {len(payload)} bytes; the limit is {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(4, "big") + payload


class Wire:
    """Messages over one stream. Sending never waits; a peer that does not read is cut off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: msgspec.Struct) -> bool:
        """False when the line is broken, or now is: the message was not sent."""
        transport = self._writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()
            return False
        self._writer.write(encode(message))
        return True

    async def receive(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The next message. EOFError or OSError when the line ends, FrameError when what comes is no message."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
        payload = await self._reader.readexactly(size)
        try:
            return decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FrameError(f"not a message: {error}") from None

    async def flush(self, timeout_s: float) -> None:
        """Waits until the kernel has taken what was sent, or the time is over."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        transport = self._writer.transport
        while transport.get_write_buffer_size() and not transport.is_closing():
            if asyncio.get_running_loop().time() >= deadline:
                return
            await asyncio.sleep(0.005)

    def abort(self) -> None:
        self._writer.transport.abort()

    def socket_option(self, level: int, option: int, value: int) -> None:
        sock: Any = self._writer.get_extra_info("socket")
        sock.setsockopt(level, option, value)
