"""The adapter on a real NVIDIA GPU. Nothing here changes the GPU's state."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from healthcheck.checks.catalogue import GPU_CHECKS, findings, run_checks
from healthcheck.checks.verdict import Status
from healthcheck.nvml import binding
from healthcheck.nvml.telemetry import NvmlTelemetry
from healthcheck.spec import AUTO
from healthcheck.telemetry import HandleState, NvmlUnavailable, Skipped

pytestmark = pytest.mark.gpu


@pytest.fixture
def real():
    binding.install(None)
    try:
        telemetry = NvmlTelemetry()
    except NvmlUnavailable as error:
        pytest.skip(str(error))
    yield telemetry
    telemetry.close()


def test_a_real_gpu_says_what_no_gpu_withholds(real):
    node = real.snapshot()
    assert len(node.gpus) == real.gpu_count() > 0
    for gpu in node.gpus:
        assert gpu.handle is HandleState.OK
        assert gpu.errors == ()
        assert gpu.identity.name.startswith(("NVIDIA", "Tesla"))
        assert gpu.identity.uuid.startswith("GPU-")
        assert isinstance(gpu.identity.gsp_firmware, str | Skipped)
        assert 0 <= gpu.memory.used_bytes <= gpu.memory.total_bytes
        assert gpu.memory.total_bytes > 2**30
        assert 0 < gpu.power.draw_mw < 2_000_000
        assert 0 < gpu.thermal.gpu_c < 110


def test_a_data_centre_gpu_gives_the_margins_on_their_own_scale(real):
    for gpu in real.snapshot().gpus:
        if isinstance(gpu.thermal.margin_c, Skipped) or isinstance(gpu.thermal.slowdown_margin_c, Skipped):
            pytest.skip("this part gives no thermal margin")
        assert -20 < gpu.thermal.shutdown_margin_c <= gpu.thermal.slowdown_margin_c <= 0 < gpu.thermal.margin_c < 110


def test_a_healthy_machine_has_no_blocking_finding_and_every_check_a_verdict(real):
    node = real.snapshot()
    verdicts = run_checks(node, None, AUTO)
    assert [finding for finding in findings(verdicts) if finding.blocks] == []
    assert len(verdicts) == 1 + len(GPU_CHECKS) * len(node.gpus)
    assert all(verdict.reason for verdict in verdicts if verdict.status is Status.SKIPPED)
    passed = {verdict.check for verdict in verdicts if verdict.status is Status.PASSED}
    assert {"handle", "pcie"} <= passed


def test_no_xid_comes_of_itself_and_the_wait_ends(real):
    assert real.wait_xid(0.05) is None


def test_the_monitor_watches_a_real_gpu_and_refuses_to_break_it(real):
    command = [sys.executable, "-m", "healthcheck.monitor", "--interval", "0.1"]
    said = b'{"type":"inject","gpu":0,"xid":48}\n{"type":"probe","id":1}\n'
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(said)
    process.stdin.flush()
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["type"] == "probed":
            break
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()
    assert any(message["type"] == "error" and "simulated" in message["error"] for message in seen)
    assert seen[-1]["ok"] is True
