"""The adapter: what it reads, what it skips, and where the vendor's errors end."""

from __future__ import annotations

from dataclasses import fields
from xml.etree import ElementTree

import pynvml
import pytest

from healthcheck.nvml import binding
from healthcheck.nvml.errors import translate
from healthcheck.nvml.telemetry import NvmlTelemetry, pci_gpu_count
from healthcheck.simulated import functions
from healthcheck.simulated.library import SimulatedLibrary
from healthcheck.simulated.node import SimulatedNode
from healthcheck.telemetry import GpuLost, HandleState, NvmlUnavailable, Process, Skipped

MIB = 1024 * 1024


def test_every_reading_of_a_healthy_b200_is_there(telemetry):
    node = telemetry.snapshot()
    assert len(node.gpus) == node.pci_gpus == 8
    for gpu in node.gpus:
        assert gpu.handle is HandleState.OK
        assert gpu.errors == ()
        for group in fields(gpu):
            value = getattr(gpu, group.name)
            assert not isinstance(value, Skipped), group.name
            if hasattr(value, "__dataclass_fields__"):
                missing = [f.name for f in fields(value) if isinstance(getattr(value, f.name), Skipped)]
                assert missing == [], group.name


@pytest.mark.shared
def test_the_b200_twin_says_what_a_real_one_said(telemetry, shared):
    """Main values of every GPU of a real node; identifiers and idle noise are left out."""
    root = ElementTree.parse(shared / "hgx-b200-nvidia-smi-q.xml").getroot()
    captured = root.findall("gpu")
    twins = telemetry.snapshot().gpus
    assert len(captured) == len(twins)
    assert root.findtext("driver_version") == telemetry.snapshot().driver
    for real, gpu in zip(captured, twins, strict=True):
        for path, ours in _same_in_both(gpu).items():
            assert real.findtext(path) == ours, path
        sum_c = _number(real, "temperature/gpu_temp") + _number(real, "temperature/gpu_temp_tlimit")
        assert abs(sum_c - gpu.thermal.gpu_c - gpu.thermal.margin_c) <= 3
        assert abs(_number(real, "gpu_power_readings/instant_power_draw") * 1000 - gpu.power.draw_mw) < 20_000
        cap = _number(real, "clocks_event_reasons_counters/clocks_event_reasons_counters_sw_power_cap") * 1000
        assert cap / 3 < gpu.clocks.software_power_cap_ns < cap * 3
        assert len(real.findall("processes/process_info")) == len(gpu.processes)


def _same_in_both(gpu):
    return {
        "product_name": gpu.identity.name,
        "gsp_firmware_version": gpu.identity.gsp_firmware,
        "gpu_recovery_action": {0: "None"}[gpu.recovery_action],
        "pci/pci_device_id": f"{gpu.identity.pci_device_id:08X}",
        "pci/pci_gpu_link_info/pcie_gen/max_link_gen": str(gpu.pcie.generation_max),
        "pci/pci_gpu_link_info/pcie_gen/current_link_gen": str(gpu.pcie.generation),
        "pci/pci_gpu_link_info/link_widths/current_link_width": f"{gpu.pcie.width}x",
        "pci/pci_gpu_link_info/link_widths/max_link_width": f"{gpu.pcie.width_max}x",
        "pci/replay_counter": str(gpu.pcie.replays),
        "fb_memory_usage/total": f"{gpu.memory.total_bytes // MIB} MiB",
        "fb_memory_usage/reserved": f"{gpu.memory.reserved_bytes // MIB} MiB",
        "fb_memory_usage/used": f"{gpu.memory.used_bytes // MIB} MiB",
        "utilization/gpu_util": f"{gpu.utilization_percent} %",
        "gpu_power_readings/current_power_limit": f"{gpu.power.limit_mw / 1000:.2f} W",
        "clocks/sm_clock": f"{gpu.clocks.sm_mhz} MHz",
        "clocks/mem_clock": f"{gpu.clocks.memory_mhz} MHz",
        "max_clocks/sm_clock": f"{gpu.clocks.sm_max_mhz} MHz",
        "max_clocks/mem_clock": f"{gpu.clocks.memory_max_mhz} MHz",
        "clocks_event_reasons/clocks_event_reason_gpu_idle": {1: "Active"}[gpu.clocks.event_reasons],
        "clocks_event_reasons_counters/clocks_event_reasons_counters_hw_therm_slowdown": "0 us",
        "temperature/gpu_temp_slow_tlimit_threshold": f"{gpu.thermal.slowdown_margin_c} C",
        "temperature/gpu_temp_max_tlimit_threshold": f"{gpu.thermal.shutdown_margin_c} C",
        "ecc_errors/volatile/dram_uncorrectable": str(gpu.ecc.uncorrected),
        "ecc_errors/aggregate/sram_threshold_exceeded": {False: "No"}[gpu.ecc.sram_threshold_exceeded],
        "ecc_errors/channel_repair_pending": {False: "No"}[gpu.repair.channel_pending],
        "ecc_errors/tpc_repair_pending": {False: "No"}[gpu.repair.tpc_pending],
        "remapped_rows/remapped_row_unc": str(gpu.repair.rows_uncorrected),
        "remapped_rows/remapped_row_pending": {False: "No"}[gpu.repair.rows_pending],
        "remapped_rows/remapped_row_failure": {False: "No"}[gpu.repair.rows_failed],
        "fabric/state": {3: "Completed"}[gpu.fabric.state],
        "fabric/status": {0: "Success"}[gpu.fabric.status],
        "fabric/health/access_timeout_recovery": {2: "False"}[gpu.fabric.health_mask >> 6 & 3],
        "fabric/health/bandwidth": {0: "N/A"}[gpu.fabric.health_mask & 3],
    }


def _number(element, path):
    return float(element.findtext(path).split()[0])


def test_a_profile_of_h100_is_healthy_too():
    node = SimulatedNode("hgx_h100")
    binding.install(SimulatedLibrary(node))
    try:
        gpu = NvmlTelemetry(pci_gpus=lambda: 8).snapshot().gpus[0]
        assert (gpu.identity.name, len(gpu.links)) == ("NVIDIA H100 80GB HBM3", 18)
    finally:
        binding.install(None)


@pytest.mark.parametrize(
    ("missing", "reading"),
    [
        ("nvmlDeviceGetNvLinkState", lambda gpu: gpu.links),
        ("nvmlDeviceGetMarginTemperature", lambda gpu: gpu.thermal.margin_c),
        ("nvmlDeviceGetSramEccErrorStatus", lambda gpu: gpu.ecc.sram_threshold_exceeded),
        ("nvmlDeviceGetRepairStatus", lambda gpu: gpu.repair.tpc_pending),
        ("nvmlDeviceGetGpuFabricInfoV", lambda gpu: gpu.fabric.state),
        ("nvmlDeviceGetFieldValues", lambda gpu: gpu.recovery_action),
    ],
)
def test_what_a_driver_lacks_is_skipped_and_no_error(node, monkeypatch, missing, reading):
    monkeypatch.delitem(functions.FUNCTIONS, missing)
    binding.install(SimulatedLibrary(node))
    gpu = NvmlTelemetry(pci_gpus=lambda: 8).snapshot().gpus[0]
    binding.install(None)
    assert isinstance(reading(gpu), Skipped)
    assert gpu.errors == ()


def test_a_call_that_fails_on_no_healthy_part_is_kept_as_an_error(node, monkeypatch):
    monkeypatch.setitem(functions.FUNCTIONS, "nvmlDeviceGetPowerUsage", lambda *_: 999)
    binding.install(SimulatedLibrary(node))
    gpu = NvmlTelemetry(pci_gpus=lambda: 8).snapshot().gpus[0]
    binding.install(None)
    assert isinstance(gpu.power.draw_mw, Skipped)
    assert gpu.errors == ("nvmlDeviceGetPowerUsage: Unknown Error",)


def test_a_wrapper_that_the_binding_lacks_is_skipped(telemetry, monkeypatch):
    monkeypatch.delattr(pynvml, "nvmlDeviceGetMarginTemperature")
    assert isinstance(telemetry.snapshot().gpus[0].thermal.margin_c, Skipped)


def test_a_lost_gpu_keeps_its_name_and_says_nothing_else(telemetry, node):
    before = telemetry.snapshot().gpus[3]
    node.inject({"gpu": 3, "fault": "lost"})
    lost = telemetry.snapshot().gpus[3]
    assert lost.handle is HandleState.LOST
    assert lost.identity == before.identity
    assert isinstance(lost.ecc.uncorrected, Skipped)
    node.reboot()
    assert telemetry.snapshot().gpus[3].handle is HandleState.OK


def test_a_gpu_that_waits_for_its_reset_is_told_from_a_lost_one(telemetry, monkeypatch):
    monkeypatch.setitem(functions.FUNCTIONS, "nvmlDeviceGetFieldValues", lambda *_: 16)
    assert telemetry.snapshot().gpus[0].handle is HandleState.RESET_REQUIRED


def test_processes_with_their_memory(telemetry, node):
    node.inject({"gpu": 1, "fault": "process", "pid": 77, "mib": 10})
    assert telemetry.snapshot().gpus[1].processes == (Process(77, 10 * MIB),)


def test_xids_of_all_gpus_and_none_when_nothing_comes(telemetry, node):
    assert telemetry.wait_xid(0) is None
    node.inject({"gpu": 5, "xid": 31})
    event = telemetry.wait_xid(0)
    assert (event.gpu, event.xid, event.recovery_action) == (5, 31, None)


def test_xid_154_comes_with_the_drivers_verdict(telemetry, node):
    telemetry.wait_xid(0)
    node.inject({"gpu": 5, "xid": 48})
    assert [telemetry.wait_xid(0).xid for _ in range(1)] == [48]
    assert telemetry.wait_xid(0).recovery_action == 1


def test_one_lost_gpu_does_not_silence_the_others_and_is_heard_again_after_the_reboot(telemetry, node):
    telemetry.wait_xid(0)
    node.inject({"gpu": 3, "fault": "lost"})
    assert [telemetry.wait_xid(0).xid for _ in range(2)] == [79, 154]
    assert telemetry.wait_xid(0) is None  # the set is replaced
    node.inject({"gpu": 4, "xid": 31})
    assert telemetry.wait_xid(0).gpu == 4
    node.reboot()
    assert telemetry.wait_xid(0) is None
    node.inject({"gpu": 3, "xid": 43})
    assert telemetry.wait_xid(0).gpu == 3


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (12, NvmlUnavailable, "no NVIDIA driver on this machine"),
        (9, NvmlUnavailable, "kernel module is not loaded"),
        (18, NvmlUnavailable, "reboot"),
        (4, NvmlUnavailable, "/dev/nvidia"),
        (15, GpuLost, "lost"),
        (16, GpuLost, "reset"),
    ],
)
def test_vendor_errors_become_ours_with_words(code, kind, words):
    error = translate(pynvml.NVMLError(code))
    assert isinstance(error, kind)
    assert words in str(error)


def test_the_pci_bus_is_counted_by_vendor_and_class(tmp_path):
    for name, vendor, kind in [
        ("0", "0x10de", "0x030200"),
        ("1", "0x10de", "0x068000"),
        ("2", "0x1002", "0x030000"),
        ("3", "0x10de", "0x030000"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert pci_gpu_count(tmp_path) == 2
    assert isinstance(pci_gpu_count(tmp_path / "none"), Skipped)
