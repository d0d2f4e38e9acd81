"""Draws docs/state-machines.md from the transition tables of the core: `python docs/generate_state_machines.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from orchestrator.recovery import incident, node_machine, run_machine
from orchestrator.recovery.state import Cause, NodeHealth, RecoveryPhase, RunPhase

PAGE = Path(__file__).with_name("state-machines.md")
OUTSIDE = "[*]"  # mermaid's name for where a machine begins and ends

Table = Mapping[StrEnum, frozenset[StrEnum]]

HEAD = """\
# State machines

Drawn by `docs/generate_state_machines.py` from the tables that the code obeys. Don't edit: change the table, then run the
script. What the words mean is in [GLOSSARY.md](../GLOSSARY.md), what moves a run in [ARCHITECTURE.md](../ARCHITECTURE.md).
"""


def page() -> str:
    """The whole page as it must stand in the repository."""
    stages: Table = {stage: to for stage, to in run_machine.STAGES.items() if stage is not None}
    parts = (
        section(
            "The phases of a run",
            "`PHASES` in `orchestrator/recovery/run_machine.py`. Those without a way out are ends.",
            diagram(RunPhase, run_machine.PHASES, [RunPhase.PENDING]),
        ),
        section(
            "The stages of a start or a recovery",
            "`STAGES` in `orchestrator/recovery/run_machine.py`: within the phases `starting` and `recovering`. A run leaves "
            "its stages when it trains (after `first_step`), when it ends, and when it goes back to the queue.",
            diagram(RecoveryPhase, stages, ordered(RecoveryPhase, run_machine.STAGES[None])),
        ),
        section(
            "The parts of an incident",
            "`SUCCESSORS` in `orchestrator/recovery/incident.py`. They are causes of the ledger, so both tell the same seconds.",
            diagram(Cause, incident.SUCCESSORS, [Cause.DETECT]),
        ),
        section(
            "The health of a node",
            "`TRANSITIONS` in `orchestrator/recovery/node_machine.py`. Whether a node can be reached (`present`) and whether "
            "it is in a gang (`run`) are kept beside its health.",
            diagram(NodeHealth, node_machine.TRANSITIONS, [NodeHealth.HEALTHY]),
        ),
    )
    return "\n".join((HEAD, *parts))


def section(title: str, text: str, drawing: str) -> str:
    return f"## {title}\n\n{text}\n\n{drawing}"


def ordered(states: type[StrEnum], chosen: Iterable[StrEnum]) -> list[StrEnum]:
    """In the order of the enum: that of a set of texts is another in each process."""
    found = set(chosen)
    return [state for state in states if state in found]


def diagram(states: type[StrEnum], table: Table, begins: list[StrEnum]) -> str:
    """A mermaid diagram; a row without followers is an end, a state without a row has no say in it."""
    arrows = [(OUTSIDE, state.value) for state in begins]
    for state in ordered(states, table):
        arrows += [(state.value, follower.value) for follower in ordered(states, table[state])]
    arrows += [(state.value, OUTSIDE) for state in ordered(states, table) if not table[state]]
    lines = [f"    {begin} --> {end}" for begin, end in arrows]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page())
