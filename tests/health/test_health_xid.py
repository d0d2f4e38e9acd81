"""The XID table, the kernel log and the fold of repeats."""

from __future__ import annotations

import csv
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthcheck import kernel_log
from healthcheck.finding import Action, Severity
from healthcheck.nvml.abi import UNKNOWN_XID
from healthcheck.simulated.node import SimulatedNode
from healthcheck.telemetry import XidEvent
from healthcheck.xid import XIDS, XidClass, finding, lookup, recovery
from healthcheck.xid_fold import FORGET_NS, MAX_ENTRIES, QUIET_NS, XidFold

S = 10**9

# The catalogue's words for its immediate action, and the actions of ours that say the same.
SAME = {
    "RESTART_APP": {Action.RESTART_APPLICATION},
    "IGNORE": {Action.NONE, Action.WATCH},
    "RESET_GPU": {Action.RESET_GPU},
    "RESTART_BM": {Action.REBOOT_NODE},
    "RESTART_VM": {Action.REBOOT_NODE},
    "CHECK_MECHANICALS": {Action.INSPECT},
    "UPDATE_SWFW": {Action.INSPECT},
    "WORKFLOW_XID_48": {Action.RESET_GPU},
    "XID_154": {Action.INSPECT},  # unless the new action came with the event
}


def _catalogue(shared):
    with (shared / "xid-catalog.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.shared
def test_every_xid_of_the_catalogue_is_in_the_table_or_known_to_be_unused(shared):
    rows = _catalogue(shared)
    assert len(rows) == 172
    applies = {int(r["xid"]) for r in rows if "YES" in (r["a100"], r["h100"], r["b100"])}
    assert applies == set(XIDS)
    for row in rows:
        if int(row["xid"]) not in applies:
            assert lookup(int(row["xid"])).action is Action.INSPECT


@pytest.mark.shared
def test_actions_agree_with_the_catalogue_or_say_why_not(shared):
    for row in _catalogue(shared):
        known = XIDS.get(int(row["xid"]))
        if known is None:
            continue
        agrees = known.action in SAME.get(row["immediate_action"], set())
        assert agrees != bool(known.ours), f"XID {known.number}: {known.action}, {row['immediate_action']!r}"


def test_every_row_says_something_of_its_own():
    sentences = [row.sentence for row in XIDS.values()]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.endswith(".") and len(sentence) < 120 for sentence in sentences)


@pytest.mark.parametrize(
    ("xid", "kind", "action", "severity"),
    [
        (31, XidClass.APPLICATION, Action.RESTART_APPLICATION, Severity.ERROR),
        (43, XidClass.APPLICATION, Action.RESTART_APPLICATION, Severity.ERROR),
        (45, XidClass.SYMPATHETIC, Action.WATCH, Severity.WARNING),
        (48, XidClass.MEMORY, Action.RESET_GPU, Severity.FATAL),
        (79, XidClass.BUS, Action.REBOOT_NODE, Severity.FATAL),
        (94, XidClass.MEMORY, Action.RESTART_APPLICATION, Severity.ERROR),
        (119, XidClass.FIRMWARE, Action.RESET_GPU, Severity.FATAL),
        (106, XidClass.DRIVER, Action.NONE, Severity.INFO),
        (4711, XidClass.UNKNOWN, Action.INSPECT, Severity.ERROR),
    ],
)
def test_what_matters_most(xid, kind, action, severity):
    row = lookup(xid)
    assert (row.kind, row.action, row.severity) == (kind, action, severity)


def test_154_does_what_the_driver_says():
    event = XidEvent(0, 154, 0, recovery_action=2)
    assert finding(event).action is Action.REBOOT_NODE
    assert finding(XidEvent(0, 154, 0)).action is Action.INSPECT
    assert finding(XidEvent(0, 154, 0, recovery_action=0)).action is Action.NONE


def test_an_unknown_recovery_is_not_healthy():
    assert recovery(8)[0] is Action.INSPECT


# --- kernel log


def test_a_line_of_the_twin_reads_back():
    node = SimulatedNode()
    node.inject({"gpu": 0, "xid": 48})
    first, second = (kernel_log.parse(line) for line in node.state.kernel_log)
    assert (first.pci, first.xid, first.truncated) == ("0000:1b:00", 48, False)
    assert (second.xid, second.recovery_action) == (154, 1)


def test_an_nvlink5_line_gives_its_registers():
    line = (
        "[ 1234.567890] NVRM: Xid (PCI:0000:8f:00): 145, RLW_SRC_TRACK Nonfatal XC1 i0 Link 10 "
        "(0x00000004 0x00000001 0x00000000)"
    )
    found = kernel_log.parse(line)
    assert (found.xid, found.link, found.fatal, found.registers) == (145, 10, False, (4, 1, 0))


def test_pid_and_long_domain():
    found = kernel_log.parse("NVRM: Xid (PCI:00000000:C3:00.0): 31, pid=4242, name=python, MMU Fault")
    assert (found.pci, found.xid, found.pid, found.truncated) == ("0000:c3:00", 31, 4242, False)


@pytest.mark.parametrize("line", ["", "NVRM: GPU at PCI:0000:8f:00", "usb 1-1: Xid 48", "NVRM: Xidentity ("])
def test_lines_about_no_xid(line):
    assert kernel_log.parse(line) is None


@given(st.text())
def test_the_parser_never_fails(text):
    found = kernel_log.parse("NVRM: Xid (" + text)
    assert found is not None


WHOLE = "NVRM: Xid (PCI:0000:8f:00): 145, pid=4242, RLW Fatal XC1 i0 Link 10 (0x00000001 0x00000002)"


@given(st.integers(min_value=0, max_value=len(WHOLE) - 1))
def test_a_cut_line_is_never_read_as_saying_something_else(end):
    whole, found = kernel_log.parse(WHOLE), kernel_log.parse(WHOLE[:end])
    if found is None:
        assert end < len("NVRM: Xid (")
        return
    assert found.xid in (145, UNKNOWN_XID)
    assert found.pci in (whole.pci, "")
    assert found.registers == whole.registers[: len(found.registers)]
    assert found.pid in (4242, None)
    assert found.link in (10, None)
    assert found.fatal in (True, None)
    assert found.truncated == (end <= WHOLE.index(" pid") + 1 or end > WHOLE.index("(0x"))


# --- the fold


def test_a_million_repeats_are_seven_lines_and_one_entry():
    fold = XidFold()
    event = XidEvent(3, 95, 0)
    fold.add(event)
    tracemalloc.start()
    said = 1 + sum(fold.add(event) is not None for _ in range(10**6 - 1))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (said, len(fold), fold.count(3, 95)) == (7, 1, 10**6)
    assert grown < 10_000


def test_a_repeat_after_a_quiet_spell_is_said_again():
    fold = XidFold()
    fold.add(XidEvent(0, 31, 0))
    assert fold.add(XidEvent(0, 31, QUIET_NS - 1)) is None
    assert fold.add(XidEvent(0, 31, 2 * QUIET_NS)).evidence["count"] == "3"


def test_a_changed_verdict_of_the_driver_is_said_at_once():
    fold = XidFold()
    fold.add(XidEvent(0, 154, 0, recovery_action=1))
    assert fold.add(XidEvent(0, 154, 1, recovery_action=2)).action is Action.REBOOT_NODE


def test_application_faults_pass_by_themselves_and_hardware_faults_do_not():
    fold = XidFold()
    fold.add(XidEvent(0, 31, 0))
    fold.add(XidEvent(0, 48, 0))
    assert fold.expire(FORGET_NS - 1) == []
    assert [f.cause for f in fold.expire(FORGET_NS)] == ["xid_31"]
    assert [f.cause for f in fold.forget(0)] == ["xid_48"]
    assert len(fold) == 0


def test_48_with_a_remapping_wants_a_drain_first():
    fold = XidFold()
    fold.add(XidEvent(1, 63, 0))
    assert fold.add(XidEvent(0, 48, 0)).action is Action.RESET_GPU
    assert fold.add(XidEvent(1, 48, 0)).action is Action.DRAIN_AND_RESET


events = st.builds(
    XidEvent,
    gpu=st.integers(0, 7),
    xid=st.integers(1, 200),
    at_ns=st.just(0),
    recovery_action=st.none(),
)


@given(st.lists(events, max_size=200))
def test_the_fold_says_every_kind_once_and_counts_all(stream):
    fold = XidFold()
    said = [fold.add(event) for event in stream]
    kinds = {(event.gpu, event.xid) for event in stream}
    first = {(f.gpu, int(f.evidence["xid"])) for f in said if f is not None}
    assert first == kinds
    assert sum(fold.count(gpu, xid) for gpu, xid in kinds) == len(stream)
    assert {f.key for f in fold.active()} == {("xid", f"xid_{xid}", gpu) for gpu, xid in kinds}


def test_memory_is_bounded_whatever_comes():
    fold = XidFold()
    for xid in range(1, 100_000):
        fold.add(XidEvent(0, xid, 0))
    assert len(fold) <= MAX_ENTRIES + 8
