"""Journal entries as plain values, and which of them concern a run."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from orchestrator.api.service import Service
from orchestrator.journal.entry import Entry
from orchestrator.recovery.state import State
from orchestrator.recovery.views import seconds

PAGE = 500
LOOK_BACK = 5_000  # entries searched for the newest decisions of a run


def entry_view(entry: Entry) -> dict[str, Any]:
    """{"seq", "at_s", "epoch", "kind", "event", "commands", "reason", "error"}."""
    event = msgspec.to_builtins(entry.event)
    return {
        "seq": entry.seq,
        "at_s": seconds(entry.at_ns),
        "epoch": entry.epoch,
        "kind": event.pop("kind"),
        "event": event,
        "commands": msgspec.to_builtins(entry.commands),
        "reason": entry.reason,
        "error": entry.error,
    }


def concerns(entry: Entry, run: str, state: State) -> bool:
    """The event or a command names the run, or the event is of a node that the run is placed on now."""
    if getattr(entry.event, "run", "") == run or any(getattr(c, "run", "") == run for c in entry.commands):
        return True
    node = getattr(entry.event, "node", "")
    return bool(node) and run in state.runs and node in state.runs[run].placement


async def page(service: Service, after: int, limit: int, run: str = "") -> tuple[list[dict[str, Any]], int]:
    """Up to `limit` entries after `after` (of one run where given), and the seq up to which was looked."""
    out: list[dict[str, Any]] = []
    while len(out) < limit:
        batch = await asyncio.to_thread(service.entries, after, min(PAGE, limit) if not run else PAGE)
        state = service.state()
        for entry in batch:
            after = entry.seq
            if not run or concerns(entry, run, state):
                out.append(entry_view(entry))
                if len(out) == limit:
                    return out, after
        if not batch:
            break
    return out, after


async def newest(service: Service, run: str, limit: int) -> list[dict[str, Any]]:
    """The newest entries of a run, oldest first, among the last LOOK_BACK of the journal."""
    found, _ = await page(service, max(0, service.last_seq() - LOOK_BACK), LOOK_BACK, run)
    return found[-limit:]
