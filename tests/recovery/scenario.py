"""Golden scenarios in text: lines with `>` are events, the lines below each are what was decided on it.

    > 1.250 worker_exited run=demo attempt=1 rank=1 node=n1 signal=9      seconds, kind, fields (JSON or bare words)
      demo: recovering, isolate, attempt 1                                where a run has moved to
      Run demo: rank 1 on n1 was killed by signal 9.                      the reason
      -> n0 leave_gang run=demo attempt=1                                 the commands

`observed_s` and `fault_s` give an event's other two times. Comments (#) and empty lines are kept.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec

from orchestrator.recovery import invariants, views
from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import AnyEvent, Event
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import RunState, State

QUIET = ("node", "why", "run", "store_host", "store_port", "world_size", "replicas", "shards")


def parse_event(line: str) -> Event:
    at_s, kind, *pairs = shlex.split(line.removeprefix(">"))
    fields: dict[str, Any] = {"kind": kind, "at_ns": nanoseconds(at_s)}
    for pair in pairs:
        name, value = pair.split("=", 1)
        if name in ("observed_s", "fault_s"):
            fields[name.removesuffix("_s") + "_at_ns"] = nanoseconds(value)
        else:
            fields[name] = _value(value)
    return msgspec.convert(fields, AnyEvent, strict=False)


def nanoseconds(text: str) -> int:
    return round(float(text) * 1e9)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def play(text: str) -> tuple[str, list[Event], State]:
    """The scenario with its decisions as they are now, its events, and the last state. Asserts the invariants."""
    state = initial_state(Policy())
    lines, events = [], []
    for line in text.splitlines():
        if line.startswith(">"):
            event = parse_event(line)
            decision = decide(state, event, state.policy)
            assert invariants.check_step(state, event, decision) == [], line
            events.append(event)
            lines += [line, *_decision_lines(state, decision)]
            state = decision.state
        elif not line.strip() or line.startswith("#"):
            lines.append(line)
        elif line.startswith("="):
            break
    return "\n".join([*lines, *_summary(state)]).rstrip() + "\n", events, state


def _decision_lines(before: State, decision: Any) -> list[str]:
    lines = []
    for name in sorted(decision.state.runs):
        was, run = before.runs.get(name), decision.state.runs[name]
        if was is None or where(was) != where(run):
            lines.append(f"  {name}: {where(run)}")
    lines += [f"  {decision.reason}"]
    for command in decision.commands:
        fields = msgspec.to_builtins(command)
        if "ranks" in fields:
            fields["ranks"] = ",".join(map(str, fields["ranks"]))
        shown = " ".join(f"{k}={v}" for k, v in fields.items() if k not in (*QUIET, "kind") and v != "")
        run = f" run={command.run}" if getattr(command, "run", "") else ""
        lines.append(f"  -> {command.node} {fields['kind']}{run} {shown}".rstrip())
    return lines


def where(run: RunState) -> str:
    parts = [str(run.phase)]
    parts += [str(run.stage)] if run.stage else []
    parts += [f"held by {run.hold}"] if run.hold else []
    parts += [f"attempt {run.attempt}"]
    parts += [f"awaits ranks {','.join(map(str, sorted(run.waiting)))}"] if run.waiting else []
    parts += [f"on {' '.join(node or '-' for node in run.placement)}"] if run.placement else []
    return ", ".join(parts)


def _summary(state: State) -> list[str]:
    lines = ["=" * 20]
    for name in sorted(state.runs):
        run = state.runs[name]
        lines.append(f"{name}: {where(run)}; {run.reason}")
        book = views.ledger_view(run.ledger, state.at_ns)
        spent = ", ".join(f"{cause} {s:g}" for cause, s in book["accounts_s"].items() if s)
        lines.append(f"  wall {book['wall_s']:g} s: {spent}; uptime {book['uptime_ratio']:.3f}")
        for incident in (*run.incidents, *([run.incident] if run.incident else [])):
            lines += _incident_lines(views.incident_view(incident, state.at_ns))
    for name in sorted(state.nodes):
        node = state.nodes[name]
        absent = "" if node.present else ", absent"
        lines.append(f"{name}: {node.health}{absent}" + (f" ({node.reason})" if node.reason else ""))
    return lines


def _incident_lines(view: dict[str, Any]) -> list[str]:
    took = f"recovered in {view['recovery_s']:g} s" if view["recovery_s"] is not None else view["outcome"] or "lasts"
    phases = ", ".join(f"{phase} {s:g}" for phase, s in view["phases_s"].items())
    also = f"; also {', '.join(view['also'])}" if view["also"] else ""
    place = f" on {view['node']}" if view["node"] else ""
    return [
        f"  {view['id']}: {view['cause']}{place}{also}; {view['rung']}, {took}, {view['steps_lost']} steps lost",
        f"    {phases}",
    ]
