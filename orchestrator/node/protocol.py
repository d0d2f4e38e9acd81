"""What trainers and stores say, as docs/worker-protocol.md has it. Unknown types and fields are passed over."""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 1


class ProtocolError(ValueError):
    """A line that is not of the worker protocol."""


class Hello(msgspec.Struct, frozen=True):
    version: int
    run: str
    rank: int
    pid: int
    attempt: int = 0


class Phase(msgspec.Struct, frozen=True):
    attempt: int
    phase: str
    step: int = -1
    source: str = ""
    detail: str = ""


class Progress(msgspec.Struct, frozen=True):
    attempt: int
    step: int
    tokens: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    step_ms: float = 0.0
    data_ms: float = 0.0
    checkpoint_ms: float = 0.0
    skipped: int = 0


class Checkpoint(msgspec.Struct, frozen=True):
    attempt: int
    step: int
    path: str
    digest: str = ""
    write_s: float = 0.0


class CheckpointRejected(msgspec.Struct, frozen=True):
    attempt: int
    path: str
    why: str = ""


class Left(msgspec.Struct, frozen=True):
    attempt: int
    step: int
    voted_step: int = 0
    holds_state: bool = False
    holds_gradients: bool = False
    why: str = ""


class Fault(msgspec.Struct, frozen=True):
    attempt: int
    kind: str
    detail: str = ""


class Store(msgspec.Struct, frozen=True):
    run: str
    attempt: int
    host: str
    port: int
    pid: int


class Bye(msgspec.Struct, frozen=True):
    attempt: int
    reason: str
    step: int = 0


Message = Hello | Phase | Progress | Checkpoint | CheckpointRejected | Left | Fault | Store | Bye


class _Head(msgspec.Struct):
    type: str


_head = msgspec.json.Decoder(_Head)
_decoders: dict[str, msgspec.json.Decoder[Message]] = {
    "hello": msgspec.json.Decoder(Hello),
    "phase": msgspec.json.Decoder(Phase),
    "progress": msgspec.json.Decoder(Progress),
    "checkpoint": msgspec.json.Decoder(Checkpoint),
    "checkpoint_rejected": msgspec.json.Decoder(CheckpointRejected),
    "left": msgspec.json.Decoder(Left),
    "fault": msgspec.json.Decoder(Fault),
    "store": msgspec.json.Decoder(Store),
    "bye": msgspec.json.Decoder(Bye),
}


def decode(line: bytes) -> Message | None:
    """One message; None for a type of a later version. ProtocolError when the line is no object of the protocol."""
    try:
        decoder = _decoders.get(_head.decode(line).type)
        return decoder.decode(line) if decoder else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(str(error)) from None
