"""The monitor as its supervisor meets it: a process that speaks NDJSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from healthcheck.desk import Desk
from healthcheck.spec import HGX_B200
from healthcheck.telemetry import XidEvent


def says(kind, **values):
    return lambda m: m["type"] == kind and all(m.get(name) == value for name, value in values.items())


def test_ready_rounds_and_the_end_of_its_input(monitor):
    process = monitor("--interval", "0.05")
    first = process.until_type("ready")
    assert first == [{"type": "ready", "gpus": 8, "name": "NVIDIA B200"}]
    rounds = process.until(says("round", round=3))
    assert [m["round"] for m in rounds] == [1, 2, 3]
    assert process.close() == 0


def test_an_xid_is_told_with_what_it_did_and_taken_back_after_the_reset(monitor):
    process = monitor("--interval", "60")
    process.until_type("round")
    process.send(type="inject", gpu=3, xid=48)
    xid = process.until(says("finding", cause="xid_48"))[-1]
    assert (xid["action"], xid["severity"], xid["gpu"], xid["check"]) == ("reset_gpu", "fatal", 3, "xid")
    # The interval is a minute: the look that finds the counter was made because of the XID.
    process.until(says("finding", cause="ecc_uncorrectable"))
    process.send(type="probe", id=1)
    probed = process.until_type("probed")[-1]
    assert (probed["id"], probed["ok"]) == (1, False)
    assert {"xid_48", "ecc_uncorrectable"} <= {f["cause"] for f in probed["findings"]}
    process.send(type="reset", gpu=3)
    over = process.until(says("finding", cause="ecc_uncorrectable", cleared=True))
    cleared = [m for m in over if m["type"] == "finding"]
    assert {"xid_48", "xid_154", "ecc_uncorrectable"} <= {m["cause"] for m in cleared}
    assert all((m["cleared"], m["action"], m["severity"]) == (True, "none", "info") for m in cleared)
    process.send(type="probe", id="again")
    assert process.until_type("probed")[-1] == {"type": "probed", "id": "again", "ok": True, "findings": []}


def test_repeats_of_an_xid_are_few_lines(monitor):
    process = monitor("--interval", "60")
    process.until_type("round")
    process.send(type="inject", gpu=0, xid=13, count=1000)
    seen = process.until(lambda m: m["type"] == "finding" and m["evidence"]["count"] == "1000")
    assert [m["evidence"]["count"] for m in seen if m["type"] == "finding"] == ["1", "10", "100", "1000"]


def test_an_application_fault_is_no_reason_to_refuse_the_node(monitor):
    process = monitor("--interval", "60")
    process.until_type("round")
    process.send(type="inject", gpu=0, xid=31)
    process.until(says("finding", cause="xid_31"))
    process.send(type="probe", id=1)
    assert process.until_type("probed")[-1]["ok"] is True


def test_a_probe_of_a_node_that_should_be_idle_finds_leaked_memory(monitor):
    process = monitor("--interval", "60")
    process.until_type("round")
    process.send(type="inject", gpu=2, fault="leak", mib=9000)
    process.send(type="probe", id=1)
    assert process.until_type("probed")[-1]["ok"] is True
    process.send(type="probe", id=2, idle=True)
    assert [f["cause"] for f in process.until_type("probed")[-1]["findings"]] == ["leaked_memory"]


def test_a_hang_is_reported_answers_probes_and_ends_with_the_reboot(monitor):
    process = monitor("--interval", "0.05", "--deadline", "0.3")
    process.until_type("round")
    process.send(type="inject", gpu=5, fault="hang")
    hang = process.until(says("finding", cause="nvml_hang"))[-1]
    assert (hang["severity"], hang["action"], hang["gpu"]) == ("fatal", "reboot_node", -1)
    process.send(type="probe", id=9)
    probed = process.until_type("probed")[-1]
    assert (probed["id"], probed["ok"]) == (9, False)
    process.send(type="inject", gpu=4, xid=31)
    process.until(says("finding", cause="xid_31"))  # XIDs of other GPUs still come
    process.send(type="reboot")
    process.until(says("finding", cause="nvml_hang", cleared=True))
    process.until_type("round")


def test_it_ends_while_the_driver_hangs(monitor):
    process = monitor("--interval", "0.05", "--deadline", "0.3")
    process.until_type("round")
    process.send(type="inject", gpu=5, fault="hang")
    process.until(says("finding", cause="nvml_hang"))
    assert process.close() == 0


def test_faults_outlive_the_monitor(monitor, tmp_path):
    state = ("--state", str(tmp_path / "state.json"), "--interval", "60")
    first = monitor(*state)
    first.until_type("ready")
    first.send(type="inject", gpu=3, fault="lost")
    first.until(says("finding", cause="gpu_lost"))
    first.process.kill()
    second = monitor(*state)
    found = second.until_type("round")
    assert [(m["cause"], m["gpu"]) for m in found if m["type"] == "finding"] == [("gpu_lost", 3)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{nonsense\n", "not a line of JSON"),
        (b"[1]\n", "not an object"),
        (b'{"type":"dance"}\n', "unknown command 'dance'"),
        (b'{"type":"inject","gpu":8,"xid":48}\n', "gpu must be from 0 to 7"),
        (b'{"type":"inject","gpu":0,"fault":"flood"}\n', "unknown fault 'flood'"),
        (b'{"type":"reset","gpu":"one"}\n', "gpu must be from 0 to 7"),
        (b'{"type":"probe","id":[1]}\n', "the id of a probe"),
    ],
)
def test_a_wrong_command_is_answered_in_words_and_hurts_nobody(monitor, line, words):
    process = monitor("--interval", "60")
    process.until_type("ready")
    process.send_raw(line)
    assert words in process.until_type("error")[-1]["error"]
    process.send(type="probe", id=1)
    assert process.until_type("probed")[-1]["ok"] is True


def test_a_broken_state_file_is_said_and_ends_it(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("{")
    done = _run("healthcheck.monitor", "--telemetry", "simulated", "--state", str(path))
    assert done.returncode == 1
    assert "delete the file" in json.loads(done.stdout)["error"]
    assert done.stderr == ""


def _run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)


def test_nothing_heavy_is_imported():
    code = "import sys, healthcheck.monitor, healthcheck.nvml.telemetry; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "ray", "msgspec", "asyncio", "orchestrator", "trainer", "rich", "yaml"}


# --- the desk by itself


def test_a_recovery_that_somebody_else_carried_out_ends_the_xids_of_that_gpu(telemetry, node):
    said = []
    desk = Desk(HGX_B200, said.append)
    desk.take_xid(XidEvent(1, 46, node.now_ns()))
    desk.take_xid(XidEvent(2, 46, node.now_ns()))
    node.inject({"gpu": 1, "xid": 46})
    desk.take_look(telemetry.snapshot())
    node.reset(1)
    said.clear()
    desk.take_look(telemetry.snapshot())
    assert {(m["cause"], m["gpu"]) for m in said if m.get("cleared")} == {("xid_46", 1), ("recovery_action_1", 1)}


# --- the one-shot scan


def test_a_scan_of_a_healthy_simulated_node():
    done = _run("healthcheck", "--telemetry", "simulated", "--idle")
    assert done.returncode == 0
    assert "8 x NVIDIA B200" in done.stdout
    assert "No finding." in done.stdout
    assert "Skipped, which is not passed" in done.stdout


def test_a_scan_finds_what_the_monitor_left(monitor, tmp_path):
    state = str(tmp_path / "state.json")
    process = monitor("--state", state)
    process.until_type("ready")
    process.send(type="inject", gpu=3, xid=48)
    process.until_type("done")
    done = _run("healthcheck", "--telemetry", "simulated", "--state", state, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["gpus"] == 8
    assert {(f["cause"], f["gpu"]) for f in report["findings"]} == {("ecc_uncorrectable", 3), ("recovery_action_1", 3)}
    statuses = {(c["check"], c["gpu"]): c["status"] for c in report["checks"]}
    assert statuses["uncorrectable_ecc", 3] == "failed"
    assert statuses["uncorrectable_ecc", 2] == "passed"
    assert statuses["hardware_throttling", 2] == "skipped"


def test_a_machine_without_a_driver_is_told_so_in_words(monkeypatch, capsys):
    import pynvml

    from healthcheck.__main__ import main
    from healthcheck.nvml import binding

    def no_library():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    binding.install(None)
    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert main([]) == 4
    assert "no NVIDIA driver on this machine" in capsys.readouterr().err
    assert main(["--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert (report["gpus"], report["findings"]) == (0, [])
    assert "no NVIDIA driver" in report["error"]
