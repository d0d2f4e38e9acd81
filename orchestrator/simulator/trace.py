"""A decision as a line of text: when, what happened, what is done, and why."""

from __future__ import annotations

import msgspec

from orchestrator.recovery.commands import Command
from orchestrator.recovery.events import Event
from orchestrator.recovery.state import Decision
from orchestrator.simulator.timeline import START_NS, S

_TIMES = ("at_ns", "observed_at_ns", "fault_at_ns")
_QUIET = (*_TIMES, "kind", "policy", "gpus", "evidence", "digest")


def line(event: Event, decision: Decision) -> str:
    at_s = (event.at_ns - START_NS) / S
    commands = ", ".join(_command(command) for command in decision.commands) or "-"
    return f"{at_s:9.3f}  {_fields(event)}\n           -> {commands}\n           {decision.reason}"


def _command(command: Command) -> str:
    fields = msgspec.structs.asdict(command)
    run = f" {fields['run']}#{fields['attempt']}" if fields.get("run") else ""
    ranks = f" ranks {','.join(map(str, fields['ranks']))} from {fields['restore']}" if "ranks" in fields else ""
    return f"{command.__struct_config__.tag}{run}{ranks} @{fields['node']}"


def _fields(event: Event) -> str:
    """The event's kind and those of its fields that say something."""
    told = {
        name: value
        for name, value in msgspec.structs.asdict(event).items()
        if name not in _QUIET and value not in ("", ())
    }
    return f"{event.__struct_config__.tag} " + " ".join(f"{name}={_value(value)}" for name, value in told.items())


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + " ".join(_value(item) for item in value) + "]"
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value).decode()
    return str(value)
