"""The simulated library answers the real pynvml wrappers as the real library would."""

from __future__ import annotations

import threading

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthcheck.nvml import abi, binding
from healthcheck.simulated.faults import FAULTS, FaultError
from healthcheck.simulated.library import SimulatedLibrary
from healthcheck.simulated.node import SimulatedNode
from healthcheck.simulated.state import Counter, GpuState, StateFileError, after_reboot, after_reset, load
from healthcheck.xid import XIDS


@pytest.fixture
def nvml(node):
    """The wrappers, initialized over the node."""
    binding.install(SimulatedLibrary(node))
    pynvml.nvmlInit()
    yield pynvml
    binding.install(None)


def handle(index):
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def new_set(*gpus):
    events = pynvml.nvmlEventSetCreate()
    for gpu in gpus:
        pynvml.nvmlDeviceRegisterEvents(handle(gpu), pynvml.nvmlEventTypeXidCriticalError, events)
    return events


def take(events):
    """XIDs that wait in a set, oldest first."""
    taken = []
    while True:
        try:
            taken.append(int(pynvml.nvmlEventSetWait_v2(events, 0).eventData))
        except pynvml.NVMLError_Timeout:
            return taken


def uncorrected(index):
    return pynvml.nvmlDeviceGetTotalEccErrors(handle(index), 1, pynvml.NVML_VOLATILE_ECC)


def recovery(index):
    return pynvml.nvmlDeviceGetFieldValues(handle(index), [230])[0].value.uiVal


def test_our_numbers_are_the_bindings_numbers():
    for code in abi.Return:
        assert getattr(pynvml, f"NVML_ERROR_{code.name}", pynvml.NVML_SUCCESS) == code
    for field in abi.Field:
        name = {"PERF_POLICY_POWER": "PERF_POLICY_POWER"}.get(field.name, field.name)
        assert getattr(pynvml, f"NVML_FI_DEV_{name}") == field
    for action in abi.RecoveryAction:
        assert getattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{action.name}") == action
    for state in abi.FabricState:
        assert getattr(pynvml, f"NVML_GPU_FABRIC_STATE_{state.name}") == state
    assert pynvml.nvmlEventTypeXidCriticalError == abi.XID_EVENT
    assert pynvml.nvmlClocksEventReasonHwSlowdown == abi.ClockReason.HW_SLOWDOWN
    assert pynvml.nvmlClocksEventReasonHwThermalSlowdown == abi.ClockReason.HW_THERMAL_SLOWDOWN
    assert pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown == abi.ClockReason.HW_POWER_BRAKE


def test_nothing_answers_before_init_or_after_the_last_shutdown(nvml):
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 8
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_a_function_that_we_do_not_have_is_not_found(nvml):
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetFanSpeed(handle(0))


def test_words_for_a_code_that_the_binding_does_not_know(nvml):
    assert "53" in str(pynvml.NVMLError(53))


def test_an_index_out_of_range_is_an_invalid_argument(nvml):
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        handle(8)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetNvLinkState(handle(0), 18)


def test_an_unknown_field_fails_alone(nvml):
    good, bad = pynvml.nvmlDeviceGetFieldValues(handle(0), [91, 17])
    assert (good.nvmlReturn, good.value.uiVal) == (0, 18)
    assert bad.nvmlReturn == abi.Return.NOT_SUPPORTED


def test_a_wait_blocks_to_its_timeout_and_then_says_so(nvml):
    events = new_set(0)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 1)


def test_a_blocked_wait_is_woken_by_the_event(nvml, node):
    events, got = new_set(2), []
    waiter = threading.Thread(target=lambda: got.append(pynvml.nvmlEventSetWait_v2(events, 30_000)))
    waiter.start()
    node.inject({"gpu": 2, "xid": 31})
    waiter.join(30)
    assert int(got[0].eventData) == 31
    assert got[0].gpuInstanceId == got[0].computeInstanceId == 0xFFFFFFFF


def test_events_before_registration_are_not_recorded(nvml, node):
    node.inject({"gpu": 0, "xid": 31})
    events = new_set(0)
    node.inject({"gpu": 0, "xid": 43})
    assert take(events) == [43]


def test_each_set_has_its_own_copy_and_only_its_gpus(nvml, node):
    both, one = new_set(0, 1), new_set(1)
    node.inject({"gpu": 0, "xid": 13})
    node.inject({"gpu": 1, "xid": 31})
    assert take(both) == [13, 31]
    assert take(one) == [31]


def test_a_freed_set_is_no_set(nvml):
    events = new_set(0)
    pynvml.nvmlEventSetFree(events)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlEventSetWait_v2(events, 0)


def test_xid_counter_recovery_action_and_log_move_together(nvml, node):
    events = new_set(3)
    node.inject({"gpu": 3, "xid": 48})
    assert take(events) == [48, 154]
    assert uncorrected(3) == 1
    assert recovery(3) == 1
    first, second = node.state.kernel_log
    assert first.startswith("NVRM: Xid (PCI:0000:61:00): 48, ")
    assert "recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)" in second


def test_a_recovery_never_becomes_milder_by_a_second_fault(nvml, node):
    node.inject({"gpu": 3, "xid": 167})
    node.inject({"gpu": 3, "xid": 48})
    assert recovery(3) == 2


def test_faults_survive_shutdown_and_init(nvml, node):
    node.inject({"gpu": 3, "xid": 48})
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert uncorrected(3) == 1


def test_a_lost_gpu_loses_only_itself_and_ends_its_sets(nvml, node):
    events, kept = new_set(3), handle(3)
    node.inject({"gpu": 3, "xid": 79})
    assert take_until_lost(events) == [79, 154]
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetPowerUsage(kept)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        handle(3)
    assert pynvml.nvmlDeviceGetName(handle(2)) == "NVIDIA B200"
    assert pynvml.nvmlDeviceGetCount() == 8


def take_until_lost(events):
    taken = []
    while True:
        try:
            taken.append(int(pynvml.nvmlEventSetWait_v2(events, 1000).eventData))
        except pynvml.NVMLError_GpuIsLost:
            return taken


def test_reset_clears_what_is_volatile_and_a_reboot_brings_a_lost_gpu_back(nvml, node):
    node.inject({"gpu": 3, "xid": 95})
    node.inject({"gpu": 3, "xid": 63})
    node.reset(3)
    assert (uncorrected(3), recovery(3)) == (0, 0)
    assert pynvml.nvmlDeviceGetRemappedRows(handle(3)) == (0, 1, 0, 0)  # the pending row is remapped now
    node.inject({"gpu": 3, "fault": "lost"})
    with pytest.raises(FaultError, match="reboot"):
        node.reset(3)
    node.reboot()
    assert uncorrected(3) == 0


def test_a_defect_survives_reset_and_reboot_until_the_part_is_replaced(nvml, node):
    node.inject({"gpu": 1, "fault": "remap", "failure": 1})
    node.inject({"gpu": 1, "fault": "pcie", "width": 8})
    node.reset(1)
    node.reboot()
    assert pynvml.nvmlDeviceGetRemappedRows(handle(1))[3] == 1
    assert pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle(1)) == 8
    node.inject({"gpu": 1, "fault": "clear"})
    assert node.state.gpus[1] == GpuState()


def test_a_sticky_fault_comes_back_with_its_xid(nvml, node):
    events = new_set(0)
    node.inject({"gpu": 0, "fault": "nvlink", "link": 5, "sticky": True})
    node.reset(0)
    assert take(events) == [149, 154, 149, 154]
    assert not pynvml.nvmlDeviceGetNvLinkState(handle(0), 5)


def test_a_hung_gpu_blocks_its_callers_until_a_reboot(nvml, node):
    kept, answered = handle(0), threading.Event()
    node.inject({"gpu": 0, "fault": "hang"})
    caller = threading.Thread(target=lambda: (pynvml.nvmlDeviceGetPowerUsage(kept), answered.set()), daemon=True)
    caller.start()
    caller.join(0.05)
    assert not answered.is_set()
    assert pynvml.nvmlDeviceGetPowerUsage(handle(1)) > 0
    node.reboot()
    caller.join(30)
    assert answered.is_set()


def test_counters_of_a_running_fault_rise_with_time(nvml, node, clock):
    node.inject({"gpu": 4, "fault": "ecc", "corrected_per_s": 17657})
    clock.advance(2)
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle(4), 0, pynvml.NVML_VOLATILE_ECC) == 2 * 17657


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"gpu": 8, "xid": 48}, "gpu must be"),
        ({"gpu": True, "xid": 48}, "gpu must be"),
        ({"gpu": 0, "fault": "flood"}, "unknown fault 'flood'"),
        ({"gpu": 0}, "unknown fault"),
        ({"gpu": 0, "xid": "48"}, "xid must be a number"),
        ({"gpu": 0, "fault": "nvlink", "link": 18}, "link must be"),
        ({"gpu": 0, "fault": "fabric", "status": 4, "health": -1}, "health must be"),
    ],
)
def test_a_refused_fault_says_why_and_changes_nothing(node, request_, words):
    with pytest.raises(FaultError, match=words):
        node.inject(request_)
    assert node.state.gpus == [GpuState() for _ in range(8)]
    assert node.state.kernel_log == []


def test_state_lives_in_its_file(tmp_path):
    path = tmp_path / "state.json"
    first = SimulatedNode("hgx_b200", seed=3, path=path)
    for fault in FAULTS:
        first.inject({"gpu": 2, "fault": fault, "xid": 31, "corrected_per_s": 5, "sticky": fault == "pcie"})
    second = SimulatedNode("hgx_h100", seed=9, path=path)  # the file wins: it is the same node
    assert second.state == first.state
    assert second.uuid(0) == first.uuid(0)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "gpus": [{"x": 1}]}'])
def test_a_file_that_holds_no_state_is_refused_in_words(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateFileError, match="delete the file"):
        load(path)


def test_seeds_name_other_parts():
    assert SimulatedNode(seed=1).uuid(0) != SimulatedNode(seed=2).uuid(0)
    assert len({SimulatedNode(seed=1).uuid(index) for index in range(8)}) == 8


@given(st.lists(st.sampled_from([*sorted(XIDS), 999, 12345]), max_size=12))
def test_a_reset_and_a_reboot_leave_no_volatile_fault(xids):
    node = SimulatedNode()
    for xid in xids:
        node.inject({"gpu": 0, "xid": xid})
    gpu = after_reboot(after_reset(node.state.gpus[0]))
    assert (gpu.uncorrected, gpu.recovery_action, gpu.links_down, gpu.rows_pending) == (0, 0, [], False)
    assert not gpu.lost
    assert gpu.corrected == Counter()
    assert gpu.rows_failed == (64 in xids)
