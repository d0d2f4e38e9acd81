"""The clock of the ledger never goes back, whatever the machine's clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal.clock import JournalClock

NS = st.integers(min_value=0, max_value=2**62)


@given(st.lists(st.tuples(NS, NS, st.lists(st.integers(0, 10**12), max_size=5)), min_size=1, max_size=6))
def test_it_never_goes_back_over_restarts(lives):
    """Each life has a wall clock and a monotonic clock of its own, both arbitrary; only the last entry carries over."""
    last_ns = 0
    for wall_ns, monotonic_ns, ticks in lives:
        now = [monotonic_ns]
        clock = JournalClock(last_ns, wall_ns=lambda wall_ns=wall_ns: wall_ns, monotonic_ns=lambda now=now: now[0])
        for tick in (0, *ticks):
            now[0] += tick
            assert clock.now_ns() >= last_ns
            last_ns = clock.now_ns()


def test_it_starts_at_the_wall_clock_and_runs_with_the_monotonic_one():
    wall, monotonic = [1_000], [70]
    clock = JournalClock(500, wall_ns=lambda: wall[0], monotonic_ns=lambda: monotonic[0])
    assert clock.now_ns() == 1_000
    wall[0], monotonic[0] = 3, 75
    assert clock.now_ns() == 1_005
    assert clock.at_monotonic_ns(72) == 1_002
