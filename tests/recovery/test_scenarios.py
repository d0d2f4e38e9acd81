"""Each file in scenarios/ is played through `decide`; its decisions must be the ones written down.

After an intended change: HOLDFAST_REGENERATE=1 pytest tests/recovery/test_scenarios.py, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from scenario import play

from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import AnyEvent
from orchestrator.recovery.policy import Policy

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_decisions_are_as_written_down(path: Path) -> None:
    text = path.read_text()
    played, _, _ = play(text)
    if os.environ.get("HOLDFAST_REGENERATE"):
        path.write_text(played)
    assert played == path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_journaled_events_lead_to_the_same_state(path: Path) -> None:
    _, events, last = play(path.read_text())
    state = initial_state(Policy())
    for event in events:
        journaled = msgspec.json.decode(msgspec.json.encode(event), type=AnyEvent)
        state = decide(state, journaled, state.policy).state
    assert state == last
