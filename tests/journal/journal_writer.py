"""Run as a program by the SIGKILL test: decides on a seed's events over and over and says each seq that is durable."""

from __future__ import annotations

import sys

import msgspec

from orchestrator.journal.journal import Journal
from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import Event
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import State
from orchestrator.simulator.run import simulate


def recorded(seed: int) -> list[Event]:
    events: list[Event] = []
    simulate(seed, tracer=lambda event, decision: events.append(event))
    return events


def endless(events: list[Event]):
    """The same history again and again, each time later."""
    span_ns = events[-1].at_ns
    turn = 0
    while True:
        for event in events:
            yield msgspec.structs.replace(event, at_ns=event.at_ns + turn * span_ns)
        turn += 1


def main(folder: str, seed: int) -> None:
    state: State = initial_state(Policy())
    with Journal.open(folder) as journal:
        for event in endless(recorded(seed)):
            decision = decide(state, event, Policy())
            seq = journal.append(event, decision)
            state = decision.state
            print(seq, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
