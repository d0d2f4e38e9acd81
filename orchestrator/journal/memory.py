"""A journal without a disk, for the simulator and for tests. What it gives back has been through the same JSON."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from orchestrator.journal.entry import Entry, decode_commands, decode_event, encode_commands, encode_event
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Decision


class MemoryJournal:
    def __init__(self) -> None:
        self.written: list[Entry] = []

    def append(self, event: Event, decision: Decision) -> int:
        return self._add(event, decision.state.epoch, decision.commands, decision.reason, "")

    def append_poison(self, event: Event, error: str, epoch: int) -> int:
        return self._add(event, epoch, (), "", error)

    def entries(self) -> Iterator[Entry]:
        """All entries, decoded from their JSON as a reader of the disk would."""
        for entry in self.written:
            yield msgspec.structs.replace(
                entry,
                event=decode_event(encode_event(entry.event)),
                commands=decode_commands(encode_commands(entry.commands)),
            )

    def _add(self, event: Event, epoch: int, commands: tuple, reason: str, error: str) -> int:
        seq = len(self.written) + 1
        self.written.append(
            Entry(seq=seq, at_ns=event.at_ns, epoch=epoch, event=event, commands=commands, reason=reason, error=error)
        )
        return seq
