"""Hang and node loss: verdicts from time alone, so time is an argument."""

from __future__ import annotations

import pytest

from orchestrator.detectors.hang import FLOOR_S, UNKNOWN_S, HangDetector
from orchestrator.detectors.node_loss import ALONE_S, RETURN_S, SILENT_S, NodeLossDetector

S = 1_000_000_000


def trained(step_s: float, steps: int = 20) -> tuple[HangDetector, int]:
    detector, now_ns = HangDetector(), S
    for step in range(steps):
        detector.observe(1, step, now_ns)
        now_ns += round(step_s * S)
    return detector, now_ns - round(step_s * S)


def test_quick_steps_are_given_the_floor() -> None:
    detector, last_ns = trained(0.05)
    assert detector.deadline_s() == FLOOR_S
    assert detector.verdict(last_ns + round((FLOOR_S - 0.1) * S)) is None
    assert "no step since step 19" in (detector.verdict(last_ns + round((FLOOR_S + 0.1) * S)) or "")


def test_the_deadline_is_learned_from_the_runs_own_steps() -> None:
    detector, last_ns = trained(8.0)
    assert detector.deadline_s() == pytest.approx(80.0)
    assert detector.verdict(last_ns + 79 * S) is None
    assert detector.verdict(last_ns + 81 * S)


def test_before_it_knows_the_steps_it_waits_long() -> None:
    detector = HangDetector()
    detector.observe(1, 0, S)
    assert detector.verdict(100 * S) is None
    assert detector.verdict(200 * S)


def test_a_new_attempt_starts_the_clock_again() -> None:
    detector, last_ns = trained(0.05)
    detector.observe(2, 5, last_ns + 60 * S)
    assert detector.verdict(last_ns + 61 * S) is None


def test_an_evaluation_that_goes_on_is_no_hang_and_one_that_stops_is() -> None:
    detector, last_ns = trained(0.05)
    for second in range(100):
        detector.observe(1, 19, last_ns + second * S)
        detector.evaluating(last_ns + second * S)
        assert detector.verdict(last_ns + second * S) is None
    said_ns = last_ns + 99 * S
    assert detector.verdict(said_ns + round((UNKNOWN_S - 0.1) * S)) is None  # silent: it may compile
    assert detector.verdict(said_ns + round((UNKNOWN_S + 0.1) * S))
    detector.evaluating(0)  # training again
    assert detector.verdict(said_ns + round((FLOOR_S - 0.1) * S)) is None
    assert detector.verdict(said_ns + round((FLOOR_S + 0.1) * S))


def connected() -> NodeLossDetector:
    detector = NodeLossDetector()
    detector.connected("n", 0)
    return detector


def seconds(value: float) -> int:
    return round(value * S)


def test_a_broken_line_alone_must_last() -> None:
    detector = connected()
    detector.disconnected("n", "end of file", S)
    assert detector.verdicts(S + seconds(ALONE_S - 0.1)) == []
    ((node, evidence),) = detector.verdicts(S + seconds(ALONE_S + 0.1))
    assert node == "n"
    assert "end of file" in evidence


def test_with_rays_word_a_broken_line_is_enough_at_once() -> None:
    detector = connected()
    detector.ray_says("n", False)
    assert detector.verdicts(S) == []
    detector.disconnected("n", "end of file", S)
    assert [node for node, _ in detector.verdicts(S + 1)] == ["n"]


def test_silence_needs_the_second_witness_or_much_time() -> None:
    detector = connected()
    assert detector.verdicts(seconds(SILENT_S + 1)) == []
    detector.ray_says("n", False)
    assert len(detector.verdicts(seconds(SILENT_S + 1))) == 1
    alone = connected()
    assert len(alone.verdicts(seconds(ALONE_S + 0.1))) == 1


def test_beats_keep_a_node() -> None:
    detector = connected()
    for second in range(60):
        detector.beat("n", second * S)
        assert detector.verdicts((second + 1) * S) == []


def test_a_node_is_lost_once_and_can_come_back() -> None:
    detector = connected()
    detector.disconnected("n", "end of file", 0)
    assert len(detector.verdicts(seconds(60))) == 1
    assert detector.verdicts(seconds(61)) == []
    detector.connected("n", seconds(62))
    assert detector.verdicts(seconds(63)) == []


def test_after_a_daemons_start_nodes_are_given_time_to_come_back() -> None:
    detector = NodeLossDetector()
    detector.expect("n", 0)
    assert detector.verdicts(seconds(RETURN_S - 0.1)) == []
    assert len(detector.verdicts(seconds(RETURN_S + 0.1))) == 1


def test_a_daemon_that_stood_still_blames_no_node() -> None:
    detector = connected()
    detector.stood_still(seconds(30), seconds(30.1))
    assert detector.verdicts(seconds(30.1)) == []
    assert detector.verdicts(seconds(30.2 + ALONE_S)) != []


def test_a_beat_read_before_the_gap_was_seen_does_not_count_twice() -> None:
    detector = connected()
    detector.beat("n", seconds(30))
    detector.stood_still(seconds(30), seconds(30))
    assert detector.verdicts(seconds(30.1 + ALONE_S)) != []


def test_a_daemon_that_stood_still_sees_no_hang_of_the_run() -> None:
    detector, last_ns = trained(0.05)
    detector.stood_still(30 * S, last_ns + 31 * S)
    assert detector.verdict(last_ns + 31 * S) is None
    assert detector.verdict(last_ns + 31 * S + seconds(FLOOR_S))
