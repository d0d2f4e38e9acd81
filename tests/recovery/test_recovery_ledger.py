"""Every nanosecond of a run belongs to one cause, whatever is moved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recovery import ledger as ledgers
from orchestrator.recovery.state import Cause, Ledger

CAUSES = st.sampled_from(list(Cause))
TIMES = st.integers(0, 10**12)


def total(ledger: Ledger) -> int:
    return sum(ledger.accounts.values())


@given(st.lists(st.tuples(TIMES, CAUSES, CAUSES, TIMES, TIMES)), TIMES)
def test_sums_stay_exact(steps: list[tuple[int, Cause, Cause, int, int]], opened_ns: int) -> None:
    ledger = ledgers.open_ledger(opened_ns, Cause.START)
    for at_ns, cause, source, checkpoint_ns, data_ns in steps:
        ledger = ledgers.stall(ledger, checkpoint_ns, data_ns)
        ledger = ledgers.switch(ledger, at_ns, cause)
        ledger = ledgers.transfer(ledger, (source, Cause.TRAINING), cause, checkpoint_ns)
        assert total(ledger) == ledger.since_ns - ledger.opened_ns
        assert all(ns >= 0 for ns in ledger.accounts.values())


def test_stalls_are_taken_out_of_the_interval_they_happened_in() -> None:
    ledger = ledgers.stall(ledgers.open_ledger(100, Cause.TRAINING), 30, 20)
    assert dict(ledgers.switch(ledger, 200, Cause.DETECT).accounts) == {
        "checkpoint_stall": 30,
        "data_stall": 20,
        "training": 50,
    }


def test_more_stall_than_time_is_cut_to_the_interval() -> None:
    ledger = ledgers.stall(ledgers.open_ledger(100, Cause.TRAINING), 30, 90)
    assert dict(ledgers.switch(ledger, 150, Cause.DETECT).accounts) == {"checkpoint_stall": 30, "data_stall": 20}


def test_an_interval_can_be_cut_before_its_stalls_are_charged() -> None:
    """A fault that began in the middle of a running interval ends the training there."""
    ledger = ledgers.stall(ledgers.open_ledger(0, Cause.TRAINING), 10, 0)
    ledger = ledgers.switch(ledgers.switch(ledger, 60, Cause.DETECT), 90, Cause.DECIDE)
    assert dict(ledger.accounts) == {"checkpoint_stall": 10, "training": 50, "detect": 30}


def test_a_transfer_takes_at_most_what_is_there_in_the_order_given() -> None:
    ledger = ledgers.switch(ledgers.open_ledger(0, Cause.TRAINING), 40, Cause.DATA_STALL)
    ledger = ledgers.switch(ledger, 50, Cause.DETECT)
    moved = ledgers.transfer(ledger, (Cause.TRAINING, Cause.DATA_STALL), Cause.DETECT, 45)
    assert dict(moved.accounts) == {"training": 0, "data_stall": 5, "detect": 45}


def test_a_closed_ledger_takes_no_more_time() -> None:
    closed = ledgers.close(ledgers.open_ledger(0, Cause.START), 7)
    assert ledgers.settled(closed, 1000) == closed
    assert total(closed) == 7
