"""The journal as it grows: long polling, or server-sent events for those who ask for them.

An SSE reader that lost its line comes back with Last-Event-ID and misses nothing: ids are the journal's seq.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.api.answers import answer, integer, run_of, service_of
from orchestrator.api.entries import page
from orchestrator.api.service import Service

KEEP_ALIVE_S = 10.0
MAX_WAIT_S = 60
MAX_ENTRIES = 1000


async def all_events(request: Request) -> Response:
    return await _events(request, "")


async def run_events(request: Request) -> Response:
    return await _events(request, run_of(request).run)


async def _events(request: Request, run: str) -> Response:
    """Query: after (seq), limit, wait_s. Answer: {"entries", "next"}, or a stream when the client accepts one."""
    service = service_of(request)
    after = integer(request, "after", 0)
    if "text/event-stream" in request.headers.get("accept", ""):
        last = request.headers.get("last-event-id", "")
        start = int(last) if last.isascii() and last.isdigit() else after
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(service, start, run), media_type="text/event-stream", headers=headers)
    limit = min(integer(request, "limit", 200), MAX_ENTRIES)
    entries, after = await page(service, after, limit, run)
    wait_s = min(integer(request, "wait_s", 0), MAX_WAIT_S)
    clock = asyncio.get_running_loop().time
    until_s = clock() + wait_s
    while limit and not entries and (left_s := until_s - clock()) > 0:  # entries of other runs also end a wait
        await service.wait_entry(after, left_s)
        entries, after = await page(service, after, limit, run)
    return answer({"entries": entries, "next": after})


async def _stream(service: Service, after: int, run: str) -> AsyncIterator[bytes]:
    """Ends when the reader goes away, which cancels it."""
    while True:
        entries, after = await page(service, after, MAX_ENTRIES, run)
        for entry in entries:
            yield b"id: %d\nevent: entry\ndata: %s\n\n" % (entry["seq"], msgspec.json.encode(entry))
        if not entries:
            yield b": still here\n\n"
        await service.wait_entry(after, KEEP_ALIVE_S)


ROUTES = [Route("/v1/events", all_events), Route("/v1/runs/{run}/events", run_events)]
