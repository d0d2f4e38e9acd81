"""Replay: the same decisions give the same state; other decisions are reported, entry by entry."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.controller import Controller
from orchestrator.journal.errors import JournalDivergedError
from orchestrator.journal.journal import Journal
from orchestrator.journal.memory import MemoryJournal
from orchestrator.journal.replay import replay
from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.decide import decide, initial_state
from orchestrator.recovery.events import FaultInjected, NodeReady
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision
from orchestrator.simulator.run import simulate

EXTRA = ProbeNode(node="n0", purpose="probation")


def decisions(seed: int) -> list[tuple]:
    taken: list[tuple] = []
    assert simulate(seed, tracer=lambda event, decision: taken.append((event, decision))).ok
    return taken


def other(state, event, policy) -> Decision:
    """A version of `decide` that probes a node whenever one is ready."""
    decision = decide(state, event, policy)
    if isinstance(event, NodeReady):
        return msgspec.structs.replace(decision, commands=(*decision.commands, EXTRA))
    return decision


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_replay_from_the_disk_gives_the_state_that_was_decided(tmp_path, seed):
    taken = decisions(seed)
    with Journal.open(tmp_path) as journal:
        for event, decision in taken:
            journal.append(event, decision)
        replayed = journal.replay()
    assert replayed.require_faithful() == taken[-1][1].state
    assert (replayed.entries, replayed.last_ns) == (len(taken), taken[-1][0].at_ns)


def test_an_empty_journal_replays_to_the_initial_state(tmp_path):
    with Journal.open(tmp_path) as journal:
        replayed = journal.replay()
    assert replayed.state == initial_state(Policy())
    assert replayed.last_ns == 0


def test_other_commands_are_reported_with_both_and_the_replay_goes_on():
    journal = MemoryJournal()
    taken = decisions(1)
    for event, decision in taken:
        journal.append(event, decision)
    replayed = replay(journal.entries(), other)
    ready = [seq for seq, (event, _) in enumerate(taken, 1) if isinstance(event, NodeReady)]
    assert [divergence.seq for divergence in replayed.divergences] == ready
    first = replayed.divergences[0]
    assert (*first.recorded, EXTRA) == first.decided
    assert replayed.entries == len(taken)
    with pytest.raises(
        JournalDivergedError, match=rf"{len(ready)} of {len(taken)} decisions differ.*entry {ready[0]} "
    ):
        replayed.require_faithful()


def test_a_decide_that_raises_on_a_recorded_event_is_a_divergence():
    journal = MemoryJournal()
    taken = decisions(1)
    for event, decision in taken:
        journal.append(event, decision)

    def raises(state, event, policy):
        if isinstance(event, NodeReady):
            raise LookupError("new bug")
        return decide(state, event, policy)

    replayed = replay(journal.entries(), raises)
    assert replayed.divergences[0].error == "LookupError: new bug"
    assert replayed.entries == len(taken)


class OneEvent:
    """A cluster that stands still."""

    def now_ns(self) -> int:
        return 5

    def next_event(self, until_ns):
        return None

    def execute(self, commands) -> None: ...


def test_poison_is_left_out_of_a_replay_even_when_it_could_be_decided_now(tmp_path):
    def raises(state, event, policy):
        if isinstance(event, FaultInjected):
            raise ValueError("bug of that day")
        return decide(state, event, policy)

    with Journal.open(tmp_path) as journal:
        controller = Controller(OneEvent(), journal, initial_state(Policy()), Policy(), decide=raises)
        controller.start(1)
        controller.handle(NodeReady(node="n0", gpus=8, boot_id="b"))
        controller.handle(FaultInjected(node="n0", fault="xid", fault_at_ns=4))
        replayed = journal.replay()
    assert replayed.poisoned == 1
    assert replayed.require_faithful() == controller.state
