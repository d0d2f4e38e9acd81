"""Each check by itself, over snapshots that differ from a healthy one in one thing; and all of them over every fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthcheck.baseline import SPACING_NS, WINDOW_NS, Baseline
from healthcheck.checks import device, links, memory, thermal
from healthcheck.checks.catalogue import GPU_CHECKS, findings, run_checks
from healthcheck.checks.verdict import Status
from healthcheck.finding import Action, Severity
from healthcheck.finding_ledger import FindingLedger
from healthcheck.spec import AUTO, HGX_B200, while_idle
from healthcheck.telemetry import HandleState, Skipped, silent_gpu

S = 10**9
NOT_GIVEN = Skipped("the part does not say")


@pytest.fixture
def healthy(telemetry):
    return telemetry.snapshot()


@pytest.fixture
def gpu(healthy):
    return healthy.gpus[2]


def later(snapshot, seconds):
    return replace(snapshot, at_ns=snapshot.at_ns + int(seconds * S))


def causes(outcome):
    assert not isinstance(outcome, Skipped), outcome.reason
    return [finding.cause for finding in outcome]


def only(outcome):
    assert not isinstance(outcome, Skipped)
    assert len(outcome) == 1
    return outcome[0]


def test_a_healthy_node_has_no_finding_and_skips_only_what_needs_time_or_idleness(healthy):
    verdicts = run_checks(healthy, None, HGX_B200)
    assert findings(verdicts) == []
    skipped = {v.check for v in verdicts if v.status is Status.SKIPPED}
    assert skipped == {"corrected_ecc_rate", "hardware_throttling", "leaked_memory"}
    at_rest = run_checks(replace(healthy, gpus=tuple(later(g, 600) for g in healthy.gpus)), healthy, HGX_B200)
    assert {v.check for v in at_rest if v.status is Status.SKIPPED} == {"leaked_memory"}
    assert findings(at_rest) == []


@pytest.mark.parametrize("check", [name for name in GPU_CHECKS if name not in ("handle", "leaked_memory")])
def test_what_the_part_does_not_say_is_skipped_never_passed(healthy, check):
    bare = silent_gpu(0, healthy.at_ns + 700 * S, HandleState.OK, "the part does not say")
    before = silent_gpu(0, healthy.at_ns, HandleState.OK, "the part does not say")
    outcome = GPU_CHECKS[check](bare, before, while_idle(HGX_B200))
    assert isinstance(outcome, Skipped)


def test_leaked_memory_is_skipped_without_a_memory_reading(healthy):
    bare = silent_gpu(0, healthy.at_ns, HandleState.OK, "the part does not say")
    assert isinstance(memory.leaked_memory(bare, None, while_idle(HGX_B200)), Skipped)


def test_a_missing_gpu_by_the_profile(healthy):
    short = replace(healthy, gpus=healthy.gpus[:7])
    finding = only(device.device_count(short, None, HGX_B200))
    assert (finding.action, finding.severity, finding.gpu) == (Action.REBOOT_NODE, Severity.FATAL, -1)


def test_without_a_profile_the_pci_bus_is_only_a_hint(healthy):
    """A container may hold one GPU of a node and see the bus with all of them."""
    one = replace(healthy, gpus=healthy.gpus[:1])
    finding = only(device.device_count(one, None, AUTO))
    assert (finding.cause, finding.blocks) == ("gpu_hidden", False)
    assert device.device_count(healthy, None, AUTO) == []
    assert isinstance(device.device_count(replace(one, pci_gpus=NOT_GIVEN), None, AUTO), Skipped)


def test_a_lost_gpu_fails_its_handle_and_skips_all_else(healthy):
    lost = silent_gpu(3, healthy.at_ns, HandleState.LOST, "the GPU is lost", healthy.gpus[3].identity)
    node = replace(healthy, gpus=(*healthy.gpus[:3], lost, *healthy.gpus[4:]))
    of_it = {v.check: v.status for v in run_checks(node, healthy, HGX_B200) if v.gpu == 3}
    assert of_it.pop("handle") is Status.FAILED
    assert set(of_it.values()) == {Status.SKIPPED}
    assert [f.action for f in findings(run_checks(node, healthy, HGX_B200))] == [Action.REBOOT_NODE]


def test_calls_that_fail_are_evidence(gpu):
    finding = only(device.handle(replace(gpu, errors=("nvmlDeviceGetPowerUsage: Unknown Error",)), None, HGX_B200))
    assert finding.action is Action.INSPECT


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (1, Action.RESET_GPU),
        (2, Action.REBOOT_NODE),
        (3, Action.DRAIN_AND_RESET),
        (4, Action.DRAIN_AND_RESET),
        (5, Action.RESTART_FABRIC_MANAGER),
        (6, Action.RESET_GPU),
        (7, Action.REBOOT_NODE),
        (8, Action.INSPECT),
    ],
)
def test_the_drivers_recovery_is_followed_and_an_unknown_one_inspected(gpu, code, action):
    assert only(device.recovery_action(replace(gpu, recovery_action=code), None, HGX_B200)).action is action


def test_uncorrectable_errors(gpu):
    bad = replace(gpu, ecc=replace(gpu.ecc, uncorrected=1))
    assert only(memory.uncorrectable_ecc(bad, None, HGX_B200)).action is Action.RESET_GPU


@pytest.mark.parametrize(
    ("risen", "action"),
    [(0, None), (599, None), (600, Action.WATCH), (60_000, Action.INSPECT), (17_657 * 600, Action.INSPECT)],
)
def test_corrected_errors_count_by_their_rate(gpu, risen, action):
    """17,657 a second went unreported elsewhere, because only the count was looked at."""
    before = replace(gpu, ecc=replace(gpu.ecc, corrected=10**9))
    now = later(replace(gpu, ecc=replace(gpu.ecc, corrected=10**9 + risen)), 600)
    assert [f.action for f in memory.corrected_ecc_rate(now, before, HGX_B200)] == ([action] if action else [])


def test_a_counter_that_started_again_gives_no_rate(gpu):
    before = replace(gpu, ecc=replace(gpu.ecc, corrected=50))
    assert isinstance(memory.corrected_ecc_rate(later(gpu, 10), before, HGX_B200), Skipped)


def test_sram_threshold(gpu):
    bad = replace(gpu, ecc=replace(gpu.ecc, sram_threshold_exceeded=True))
    assert only(memory.sram_threshold(bad, None, HGX_B200)).action is Action.INSPECT


def test_row_remapping(gpu):
    def outcome(**changes):
        return memory.row_remap(replace(gpu, repair=replace(gpu.repair, **changes)), None, HGX_B200)

    assert only(outcome(rows_pending=True)).action is Action.DRAIN_AND_RESET
    assert only(outcome(rows_failed=True)).action is Action.REPLACE
    assert outcome(rows_uncorrected=511) == []
    assert only(outcome(rows_uncorrected=512)).action is Action.WATCH


def test_pending_repairs(gpu):
    bad = replace(gpu, repair=replace(gpu.repair, channel_pending=True, tpc_pending=True))
    finding = only(memory.repair(bad, None, HGX_B200))
    assert finding.action is Action.DRAIN_AND_RESET
    assert "memory channel and compute cluster" in finding.sentence


@pytest.mark.parametrize(("margin", "fails"), [(49, False), (-2, False), (-3, True), (-4, True)])
def test_the_thermal_margin_is_judged_by_the_parts_own_limit(gpu, margin, fails):
    hot = replace(gpu, thermal=replace(gpu.thermal, margin_c=margin))
    assert bool(causes(thermal.thermal_margin(hot, None, HGX_B200))) is fails


def test_no_absolute_temperature_and_no_software_power_cap_is_ever_a_finding(healthy):
    """A GPU at full load sits at its power cap all day."""
    for held_ns in (8 * 10**11, 9 * 10**15):
        gpus = tuple(
            later(
                replace(
                    gpu,
                    thermal=replace(gpu.thermal, gpu_c=95),
                    clocks=replace(gpu.clocks, software_power_cap_ns=held_ns, event_reasons=0x4),
                ),
                600,
            )
            for gpu in healthy.gpus
        )
        assert findings(run_checks(replace(healthy, gpus=gpus), healthy, HGX_B200)) == []


@pytest.mark.parametrize(("share", "fails"), [(0.59, False), (0.61, True)])
@pytest.mark.parametrize("counter", ["thermal_slowdown_ns", "power_brake_ns"])
def test_hardware_throttling_is_a_share_of_ten_minutes(gpu, counter, share, fails):
    now = later(replace(gpu, clocks=replace(gpu.clocks, **{counter: int(share * 600 * S)})), 600)
    assert bool(causes(thermal.hardware_throttling(now, gpu, HGX_B200))) is fails


def test_a_short_time_says_nothing_about_throttling(gpu):
    now = later(replace(gpu, clocks=replace(gpu.clocks, thermal_slowdown_ns=60 * S)), 60)
    assert isinstance(thermal.hardware_throttling(now, gpu, HGX_B200), Skipped)


def test_nvlinks_down_or_missing(gpu):
    down = replace(gpu, links=tuple(link not in (3, 7) for link in range(18)))
    assert only(links.nvlink(down, None, HGX_B200)).sentence == "NVLinks are down: 3, 7."
    few = replace(gpu, links=(True,) * 12)
    assert "6 of 18" in only(links.nvlink(few, None, HGX_B200)).sentence
    assert links.nvlink(few, None, AUTO) == []


@pytest.mark.parametrize("shown", [(False,) * 18, NOT_GIVEN])
def test_a_gpu_given_alone_to_a_virtual_machine_has_no_link_to_lose(gpu, shown):
    alone = replace(gpu, links=shown, fabric=replace(gpu.fabric, state=1))
    assert isinstance(links.nvlink(alone, None, AUTO), Skipped)
    assert isinstance(links.fabric(alone, None, AUTO), Skipped)
    assert causes(links.fabric(alone, None, HGX_B200)) == ["fabric_not_ready"]


def test_the_fabric(gpu):
    def outcome(before=None, now=gpu, **changes):
        return links.fabric(replace(now, fabric=replace(now.fabric, **changes)), before, HGX_B200)

    assert isinstance(outcome(state=0), Skipped)
    assert only(outcome(state=2)).action is Action.WATCH
    waiting = replace(gpu, fabric=replace(gpu.fabric, state=2))
    assert only(outcome(waiting, later(gpu, 59), state=2)).action is Action.WATCH
    assert only(outcome(waiting, later(gpu, 60), state=2)).action is Action.RESTART_FABRIC_MANAGER
    assert causes(outcome(status=10)) == ["fabric_failed"]
    assert "degraded bandwidth" in only(outcome(health_mask=0x81)).sentence
    assert "incorrect configuration 5" in only(outcome(health_mask=0x580)).sentence
    assert outcome(health_mask=0x180) == []  # configuration: none is wrong
    assert outcome(health_mask=NOT_GIVEN) == []


def test_pcie(gpu):
    def outcome(before=None, now=gpu, **changes):
        return links.pcie(replace(now, pcie=replace(now.pcie, **changes)), before, HGX_B200)

    assert only(outcome(width=8)).cause == "pcie_width"
    assert outcome(generation=1) == []  # an idle link saves power
    assert causes(outcome(now=replace(gpu, utilization_percent=90), generation=4)) == ["pcie_generation"]
    assert outcome(gpu, later(gpu, 600), replays=310) == []
    assert causes(outcome(gpu, later(gpu, 600), replays=320)) == ["pcie_replays"]
    assert outcome(gpu, later(gpu, 1), replays=20) == []  # a burst is no rate


def test_memory_without_an_owner_counts_only_where_no_job_may_run(gpu):
    used = replace(gpu, memory=replace(gpu.memory, used_bytes=2**31))
    assert isinstance(memory.leaked_memory(used, None, HGX_B200), Skipped)
    assert only(memory.leaked_memory(used, None, while_idle(HGX_B200))).action is Action.RESET_GPU
    assert memory.leaked_memory(gpu, None, while_idle(HGX_B200)) == []


def test_counters_of_another_part_are_not_compared(healthy):
    """After a replacement the same index is another GPU."""
    gpu = healthy.gpus[0]
    old = replace(gpu, identity=replace(gpu.identity, uuid="GPU-of-before"))
    new = later(replace(gpu, ecc=replace(gpu.ecc, corrected=10**9)), 600)
    found = run_checks(replace(healthy, gpus=(new,)), replace(healthy, gpus=(old,)), AUTO)
    assert {v.status for v in found if v.check == "corrected_ecc_rate"} == {Status.SKIPPED}


# Injected fault -> causes of the checks at once, on an idle node
EXPECTED = [
    ({"xid": 48}, {"recovery_action_1", "ecc_uncorrectable"}),
    ({"xid": 31}, set()),
    ({"fault": "lost"}, {"gpu_lost"}),
    ({"fault": "ecc"}, {"recovery_action_1", "ecc_uncorrectable"}),
    ({"fault": "sram"}, {"recovery_action_1", "ecc_uncorrectable", "sram_threshold"}),
    ({"fault": "remap"}, {"row_remap_pending"}),
    ({"fault": "remap", "failure": 1}, {"recovery_action_1", "row_remap_failure"}),
    ({"fault": "nvlink", "link": 5}, {"recovery_action_1", "nvlink_down"}),
    ({"fault": "fabric"}, {"fabric_not_ready"}),
    ({"fault": "fabric", "health": 1}, {"fabric_unhealthy"}),
    ({"fault": "thermal"}, {"thermal_margin"}),
    ({"fault": "pcie"}, {"pcie_width"}),
    ({"fault": "leak"}, {"leaked_memory"}),
    ({"fault": "process"}, {"stray_process"}),
]


@pytest.mark.parametrize(("fault", "expected"), EXPECTED, ids=lambda value: str(value))
def test_an_injected_fault_shows_on_its_gpu_alone_and_goes_when_the_part_is_replaced(telemetry, node, fault, expected):
    spec = while_idle(HGX_B200)
    telemetry.snapshot()
    node.inject({"gpu": 6, **fault})
    found = findings(run_checks(telemetry.snapshot(), None, spec))
    assert {f.cause for f in found} == expected
    assert {f.gpu for f in found} <= {6}
    node.inject({"gpu": 6, "fault": "clear"})
    assert findings(run_checks(telemetry.snapshot(), None, spec)) == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"fault": "ecc", "corrected_per_s": 17657}, {"ecc_corrected_rate"}),
        ({"fault": "throttle"}, {"thermal_slowdown"}),
        ({"fault": "throttle", "power_brake": 1}, {"power_brake"}),
        ({"fault": "pcie", "replays_per_s": 1}, {"pcie_replays"}),
    ],
)
def test_a_fault_with_a_rate_shows_after_its_window(telemetry, node, clock, fault, expected):
    baseline = Baseline()
    baseline.add(telemetry.snapshot())
    node.inject({"gpu": 1, **fault})
    clock.advance(600)
    found = findings(run_checks(telemetry.snapshot(), baseline.oldest, HGX_B200))
    assert {f.cause for f in found} == expected


def test_the_baseline_keeps_one_look_a_minute_for_ten(healthy):
    baseline = Baseline()
    for second in range(3600):
        baseline.add(later(healthy, second))
    span_ns = healthy.at_ns + 3599 * S - baseline.oldest.at_ns
    assert WINDOW_NS - SPACING_NS <= span_ns <= WINDOW_NS
    assert len(baseline._kept) <= 11


def test_the_ledger_tells_new_changed_and_cleared_and_a_skipped_check_clears_nothing(gpu):
    ledger = FindingLedger()
    one = only(memory.uncorrectable_ecc(replace(gpu, ecc=replace(gpu.ecc, uncorrected=1)), None, HGX_B200))
    assert ledger.update([one], []) == ([one], [])
    more = replace(one, evidence={"count": "2"})
    assert ledger.update([more], []) == ([], [])
    worse = replace(one, action=Action.REPLACE)
    assert ledger.update([worse], []) == ([worse], [])
    assert ledger.update([], [("uncorrectable_ecc", 3)]) == ([], [])  # its GPU gave no verdict
    assert ledger.update([], [("uncorrectable_ecc", 2)]) == ([], [worse])
    assert ledger.standing() == []
