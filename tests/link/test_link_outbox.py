from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.link.outbox import Outbox
from orchestrator.recovery.events import Finding, NodeFindings, NodeLost


def finding(cause: str, gpu: int = 0) -> Finding:
    return Finding(check="xid", cause=cause, severity="error", action="reset_gpu", sentence=cause, gpu=gpu)


def findings(*causes: str) -> NodeFindings:
    return NodeFindings(node="n", findings=tuple(finding(cause) for cause in causes))


def lost(n: int) -> NodeLost:
    return NodeLost(node="n", evidence=str(n))


def test_ages_are_counted_when_a_report_is_sent() -> None:
    outbox = Outbox()
    known = outbox.put(lost(0), observed_ns=100, fault_ns=40)
    unknown = outbox.put(lost(1), observed_ns=100)
    assert (known.report(130).age_ns, known.report(130).fault_age_ns) == (30, 90)
    assert unknown.report(130).fault_age_ns == 0


@given(puts=st.integers(0, 30), acks=st.lists(st.integers(0, 40)))
def test_what_is_kept_is_what_follows_the_highest_acknowledged(puts: int, acks: list[int]) -> None:
    outbox = Outbox()
    for n in range(puts):
        outbox.put(lost(n), observed_ns=0)
    for cursor in acks:
        outbox.acknowledge(cursor)
    assert [entry.cursor for entry in outbox.entries()] == list(range(max(acks, default=0) + 1, puts + 1))


def test_when_full_the_oldest_findings_merge_into_the_newer_cursor() -> None:
    outbox = Outbox(capacity=4)
    for event in (lost(0), findings("a", "b"), lost(1), findings("b", "c")):
        outbox.put(event, observed_ns=len(outbox) + 1)
    outbox.put(lost(2), observed_ns=9)
    assert [entry.cursor for entry in outbox.entries()] == [1, 3, 4, 5]
    merged = outbox.entries()[2]
    assert isinstance(merged.event, NodeFindings)
    assert [f.cause for f in merged.event.findings] == ["a", "b", "c"]
    assert merged.observed_ns == 2


@given(st.lists(st.booleans(), max_size=60))
def test_it_never_outgrows_its_capacity_and_loses_no_finding_while_two_can_merge(kinds: list[bool]) -> None:
    outbox = Outbox(capacity=5)
    for n, is_finding in enumerate(kinds):
        outbox.put(findings(str(n)) if is_finding else lost(n), observed_ns=n)
        assert len(outbox) <= 5
    cursors = [entry.cursor for entry in outbox.entries()]
    assert cursors == sorted(cursors)
    if all(kinds):
        kept = [f.cause for e in outbox.entries() if isinstance(e.event, NodeFindings) for f in e.event.findings]
        assert kept == [str(n) for n in range(len(kinds))]
