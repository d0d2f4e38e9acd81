"""Newline-delimited JSON over a local stream: trainers, stores, standby, monitor and the control socket speak it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import msgspec

MAX_LINE_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 1024 * 1024


class Line:
    """One peer. Sending never waits: a peer that does not read is cut off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: dict[str, object]) -> bool:
        transport = self._writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()
            return False
        self._writer.write(msgspec.json.encode(message) + b"\n")
        return True

    async def received(self) -> AsyncIterator[bytes]:
        """Lines until the peer is gone. ValueError for one that is too long."""
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return
            if not line.endswith(b"\n"):
                return
            yield line

    def peer(self) -> tuple[int, int]:
        """Process and user number of the peer, from the kernel."""
        raw = self._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", raw)
        return pid, uid

    def close(self) -> None:
        self._writer.close()


async def line_over(sock: socket.socket) -> Line:
    """A line over a connected Unix stream socket, which it owns from now on."""
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
    return Line(reader, writer)
