"""One journal entry, and its JSON."""

from __future__ import annotations

import msgspec

from orchestrator.recovery.commands import AnyCommand, Command
from orchestrator.recovery.events import AnyEvent, Event


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An event with the decision on it. `error` is set for poison: `decide` raised, nothing was commanded."""

    seq: int
    at_ns: int
    epoch: int
    event: Event
    commands: tuple[Command, ...] = ()
    reason: str = ""
    error: str = ""


_encoder = msgspec.json.Encoder()
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)
_commands_decoder: msgspec.json.Decoder[tuple[Command, ...]] = msgspec.json.Decoder(tuple[AnyCommand, ...])


def encode_event(event: Event) -> str:
    return _encoder.encode(event).decode()


def encode_commands(commands: tuple[Command, ...]) -> str:
    return _encoder.encode(commands).decode()


def decode_event(text: str) -> Event:
    """Raises msgspec.DecodeError (ValidationError for an unknown kind or a wrong field)."""
    return _event_decoder.decode(text)


def decode_commands(text: str) -> tuple[Command, ...]:
    """Raises msgspec.DecodeError."""
    return _commands_decoder.decode(text)
