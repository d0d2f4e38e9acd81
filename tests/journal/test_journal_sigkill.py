"""A daemon killed at any moment: what it had acknowledged is there, and nothing half-written is."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from journal_writer import endless, recorded

from orchestrator.journal.journal import Journal
from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.policy import Policy

SEED = 3


@pytest.mark.parametrize("kill", range(6))
def test_what_was_acknowledged_before_a_kill_is_replayed(tmp_path, kill):
    rng = random.Random(kill)
    writer = Path(__file__).with_name("journal_writer.py")
    process = subprocess.Popen([sys.executable, str(writer), str(tmp_path), str(SEED)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [int(line) for line in islice(process.stdout, rng.randrange(1, 150))][-1]
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith(b"\n"))])
    process.wait()

    with Journal.open(tmp_path) as journal:
        replayed = journal.replay()
        # One entry may have been committed whose acknowledgement was never said.
        assert journal.seq in (acknowledged, acknowledged + 1)
        state = initial_state(Policy())
        for event in islice(endless(recorded(SEED)), journal.seq):
            state = decide(state, event, Policy()).state
        assert replayed.require_faithful() == state
        assert journal.append(next(iter(recorded(SEED))), decide(state, recorded(SEED)[0], Policy())) == journal.seq
