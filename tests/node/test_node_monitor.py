"""The health monitor, probes, and fault tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest
from node_harness import TRAIN, Node, join, until

from orchestrator.node import monitor as monitor_module
from orchestrator.node.findings import REMINDER_NS, Novelty
from orchestrator.node.monitor import Monitor
from orchestrator.node.processes import Reaper
from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.events import (
    CommandFailed,
    FaultInjected,
    Finding,
    NodeFindings,
    NodeLost,
    NodeProbed,
    WorkerExited,
)

SIMULATED = ("--simulated", "hgx-b200")


def probe(purpose: str = "preflight") -> ProbeNode:
    return ProbeNode(node="n0", purpose=purpose, run="r", attempt=1)


def monitor_pid(node: Node) -> int:
    for child in psutil.Process(node.processes[0].pid).children():
        try:
            if "fake_monitor" in " ".join(child.cmdline()):
                return child.pid
        except psutil.Error:
            continue
    return 0


def test_an_injected_xid_is_reported_once_and_fails_the_probe_until_the_reset(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8)
        daemon.order(probe())
        assert (await daemon.event(NodeProbed)).ok
        daemon.inject("xid", gpu=3, xid=48)
        (finding,) = (await daemon.event(NodeFindings)).findings
        assert (finding.check, finding.cause, finding.gpu, finding.evidence) == ("xid", "xid_48", 3, {"xid": "48"})
        kinds = [type(event) for event in daemon.order_of_events]
        assert kinds.index(FaultInjected) < kinds.index(NodeFindings)
        injected = next(report for report in daemon.reports if isinstance(report.event, FaultInjected))
        assert injected.event.fault == "xid"
        assert 0 < injected.fault_age_ns == injected.age_ns

        daemon.inject("xid", gpu=4, xid=79)
        await daemon.event(NodeFindings, 2)
        daemon.order(probe("probation"))
        probed = await daemon.event(NodeProbed, 2)
        assert (probed.ok, probed.purpose, probed.run, probed.attempt) == (False, "probation", "r", 1)
        assert [finding.gpu for finding in probed.findings] == [3, 4]
        daemon.inject("reset")
        daemon.order(probe("probation"))
        assert (await daemon.event(NodeProbed, 3)).ok
        assert len(daemon.events(FaultInjected)) == 2

    on_node(body)


def test_a_node_without_gpus_says_that_nothing_was_checked(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(probe())
        probed = await daemon.event(NodeProbed)
        assert probed.ok
        assert probed.findings[0].cause == "no_gpu"

    on_node(body)


def test_a_monitor_that_is_killed_once_is_no_verdict(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8)
        await until(lambda: monitor_pid(node))
        first = monitor_pid(node)
        os.kill(first, signal.SIGKILL)
        await until(lambda: monitor_pid(node) not in (0, first))
        daemon.order(probe())
        assert (await daemon.event(NodeProbed)).ok
        assert daemon.events(NodeFindings) == []

    on_node(body)


def test_a_monitor_that_keeps_dying_is_a_finding(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8, monitor="--die")
        (finding,) = (await daemon.event(NodeFindings)).findings
        assert (finding.check, finding.severity, finding.action) == ("monitor_dies", "error", "inspect")
        assert finding.evidence["last"] == "exit code 1"
        assert "no NVML here" in (node.dir / "monitor.log").read_text()

    on_node(body)


async def _monitor(tmp_path, *options: str) -> tuple[Monitor, list[Finding], list[asyncio.Task]]:
    """A monitor in this process, so that its limits can be set."""
    fake = os.path.join(os.path.dirname(__file__), "fakes", "fake_monitor.py")
    found: list[Finding] = []
    reaper = Reaper()
    monitor = Monitor(
        [sys.executable, fake, *options],
        env=os.environ,
        log_path=tmp_path / "monitor.log",
        reaper=reaper,
        nice=0,
        on_findings=found.extend,
    )
    return monitor, found, [asyncio.create_task(monitor.run())]


async def _end(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_monitor_that_falls_silent_is_a_finding_and_starts_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(monitor_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(monitor_module, "TICK_S", 0.05)

    async def scenario() -> None:
        monitor, found, tasks = await _monitor(tmp_path, "--mute-after", "3", "--interval", "0.02")
        try:
            await until(lambda: found)
            assert [finding.check for finding in found] == ["monitor_silent"]
            assert (found[0].severity, found[0].action) == ("error", "inspect")
            silent = monitor.pid
            await until(lambda: monitor.pid not in (0, silent))
        finally:
            await _end(tasks)

    asyncio.run(scenario())


def test_a_stopped_monitor_is_silent(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(monitor_module, "SILENCE_S", 0.3)
    monkeypatch.setattr(monitor_module, "TICK_S", 0.05)

    async def scenario() -> None:
        monitor, found, tasks = await _monitor(tmp_path, "--interval", "0.02")
        try:
            assert (await monitor.probe(idle=True))[0]
            os.kill(monitor.pid, signal.SIGSTOP)
            await until(lambda: found)
            assert found[0].check == "monitor_silent"
            assert (await monitor.probe(idle=True))[0]
        finally:
            await _end(tasks)

    asyncio.run(scenario())


def test_a_probe_that_is_not_answered_fails_the_node(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(monitor_module, "PROBE_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        monitor, _, tasks = await _monitor(tmp_path, "--no-probe")
        try:
            ok, found = await monitor.probe(idle=True)
            assert not ok
            assert "did not answer" in found[0].sentence
        finally:
            await _end(tasks)

    asyncio.run(scenario())


# --- which findings are news


def finding(**fields: object) -> Finding:
    given = {"check": "xid", "cause": "xid_95", "severity": "fatal", "action": "reset_gpu", "sentence": "s", "gpu": 1}
    return Finding(**{**given, **fields})  # type: ignore[arg-type]


def test_a_finding_that_stands_is_news_again_only_after_a_while() -> None:
    novelty = Novelty()
    assert novelty.is_news(finding(), 0)
    assert not any(novelty.is_news(finding(evidence={"count": str(n)}), n) for n in range(1, 1000))
    assert novelty.is_news(finding(), REMINDER_NS)
    novelty.forget()
    assert novelty.is_news(finding(), REMINDER_NS + 1)
    novelty.cleared(finding(sentence="over"))
    assert novelty.is_news(finding(), REMINDER_NS + 2)


@pytest.mark.parametrize("change", [{"gpu": 2}, {"cause": "xid_48"}, {"check": "ecc"}, {"severity": "error"}])
def test_another_finding_or_a_changed_one_is_news(change: dict) -> None:
    novelty = Novelty()
    novelty.is_news(finding(), 0)
    assert novelty.is_news(finding(**change), 1)


# --- fault tests


def test_a_killed_and_a_stopped_worker(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8)
        daemon.order(join(ranks=(0, 1)), TRAIN)
        await daemon.stepping(1, (0, 1))
        daemon.inject("stop_worker", run="r", rank=1)
        await daemon.event(FaultInjected)
        stopped = psutil.Process(daemon.latest(1).pid)
        await until(lambda: stopped.status() == psutil.STATUS_STOPPED)
        daemon.inject("kill_worker", rank=0)
        exited = await daemon.event(WorkerExited)
        assert (exited.rank, exited.signal) == (0, signal.SIGKILL)
        kinds = [type(event) for event in daemon.order_of_events]
        assert kinds.index(FaultInjected) < kinds.index(WorkerExited)
        assert [event.fault for event in daemon.events(FaultInjected)] == ["stop_worker", "kill_worker"]

    on_node(body)


def test_a_killed_supervisor_has_said_so(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8)
        daemon.inject("kill_supervisor")
        assert await asyncio.to_thread(node.processes[0].wait, 20) == -signal.SIGKILL
        assert (await daemon.event(FaultInjected)).fault == "kill_supervisor"

    on_node(body)


def test_the_raylet_of_a_simulated_node_can_be_stopped_and_killed(on_node) -> None:
    async def body(node: Node) -> None:
        raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        try:
            daemon = await node.started(*SIMULATED, "--raylet-pid", str(raylet.pid), gpus=8)
            daemon.inject("stop_raylet")
            await until(lambda: psutil.Process(raylet.pid).status() == psutil.STATUS_STOPPED)
            assert daemon.events(NodeLost) == []
            daemon.inject("kill_raylet")
            await daemon.event(NodeLost)
            assert [event.fault for event in daemon.events(FaultInjected)] == ["stop_raylet", "kill_raylet"]
        finally:
            raylet.kill()
            raylet.wait()

    on_node(body)


def test_faults_that_cannot_be_made_say_why_and_are_not_reported(on_node) -> None:
    refused: list[tuple[str, dict, str]] = [
        ("kill_worker", {"run": "r", "rank": 7}, "no trainer of run r with rank 7"),
        ("kill_worker", {"rank": "first"}, "whole number"),
        ("kill_raylet", {}, "no raylet"),
        ("meteorite", {}, "no fault 'meteorite'"),
    ]

    async def body(node: Node) -> None:
        daemon = await node.started(*SIMULATED, gpus=8)
        for count, (fault, details, says) in enumerate(refused, start=1):
            daemon.inject(fault, **details)
            failed = await daemon.event(CommandFailed, count)
            assert failed.command == "inject"
            assert says in failed.error
        assert daemon.events(FaultInjected) == []

    on_node(body)


def test_a_real_node_is_spared_unless_it_was_started_for_fault_tests(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        daemon.inject("kill_worker")
        assert "--allow-injection" in (await daemon.event(CommandFailed)).error
        assert daemon.events(WorkerExited) == []

    on_node(body)


def test_a_real_node_started_for_fault_tests_kills_trainers_but_no_raylet(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started("--allow-injection", "--raylet-pid", str(os.getpid()))
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        daemon.inject("kill_worker")
        assert (await daemon.event(WorkerExited)).signal == signal.SIGKILL
        daemon.inject("kill_raylet")
        assert "no raylet of its own" in (await daemon.event(CommandFailed)).error

    on_node(body)
