"""The supervisor among its neighbours: daemon, standby, agent, raylet, and its own end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import psutil
from node_harness import TRAIN, Node, join, leave, stop, store, until, workload

from orchestrator.link.messages import Order, ReadLog, Shutdown
from orchestrator.node import control, paths
from orchestrator.recovery.events import CommandFailed, NodeLost, StoreLost, StoreReady, WorkerExited, WorkerLeft


def sleeper() -> subprocess.Popen[bytes]:
    """Stands in for a raylet."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])


# --- stores


def test_a_store_starts_answers_again_and_its_loss_is_told(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(store(), TRAIN)
        ready = await daemon.event(StoreReady)
        assert (ready.run, ready.attempt, ready.node, ready.host, ready.port) == ("r", 1, "n0", "127.0.0.1", 4711)
        daemon.order(store(), TRAIN)
        assert await daemon.event(StoreReady, 2) == ready
        (pid,) = _stores(node)
        os.kill(pid, signal.SIGKILL)
        lost = await daemon.event(StoreLost)
        assert (lost.attempt, lost.node) == (1, "n0")
        assert "SIGKILL" in lost.detail

    on_node(body)


def test_a_newer_attempt_ends_the_older_store_without_a_word(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(store(1), TRAIN)
        await daemon.event(StoreReady)
        daemon.order(store(2), TRAIN)
        assert (await daemon.event(StoreReady, 2)).attempt == 2
        await until(lambda: len(_stores(node)) == 1)
        daemon.order(join(3), TRAIN)
        await daemon.stepping(3)
        await until(lambda: not _stores(node))
        assert daemon.events(StoreLost) == []

    on_node(body)


def test_stopping_a_run_ends_its_store(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(store(), TRAIN)
        await daemon.event(StoreReady)
        daemon.order(stop())
        await until(lambda: not _stores(node))
        assert daemon.events(StoreLost) == []

    on_node(body)


def _stores(node: Node) -> list[int]:
    """Living stores, by what they wrote to their logs."""
    pids = [int(log.read_text()) for log in node.dir.glob("runs/*/attempt-*/store.log") if log.read_text()]
    return [pid for pid in pids if psutil.pid_exists(pid)]


# --- the standby


def test_forks_wait_for_the_standby(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(standby="--ready-after 0.5")
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)

    on_node(body)


def test_a_standby_that_dies_is_started_again(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        await until(lambda: (node.ping() or {}).get("standby_ready"))
        (standby,) = psutil.Process(node.processes[0].pid).children()
        standby.kill()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)

    on_node(body)


def test_a_standby_that_dies_after_the_fork_leaves_one_trainer(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(standby=f"--die-once {node.folder / 'died'}")
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        # Supervisor, standby, and one trainer: the second is killed, whichever was first.
        await until(lambda: (node.folder / "died").exists() and node.ping()["standby_ready"])
        await until(lambda: len(node.leftovers()) == 3)
        assert daemon.events(CommandFailed) == []

    on_node(body)


def test_a_trainer_that_waits_for_the_standby_can_be_stopped(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(standby="--never-ready")
        daemon.order(join(), TRAIN)
        daemon.order(stop(1))
        exited = await daemon.event(WorkerExited)
        assert (exited.rank, exited.exit_code, exited.signal) == (0, None, None)
        assert "before it was started" in exited.detail

    on_node(body)


# --- the daemon


def test_without_a_daemon_trainers_go_on_and_their_events_wait(on_node) -> None:
    async def body(node: Node) -> None:
        first = await node.started()
        first.order(join(ranks=(0, 1)), workload("--step-s", "0.02"))
        await first.stepping(1, (0, 1))
        pids = {rank: first.latest(rank).pid for rank in (0, 1)}
        step = first.latest(0).step
        await first.hub.close()
        os.kill(pids[1], signal.SIGKILL)
        await until(lambda: node.ping()["workers"] == 1)
        second = await node.daemon(epoch=2)
        exited = await second.event(WorkerExited)
        assert exited.rank == 1
        (worker,) = second.hellos[0].workers
        assert (worker.pid, worker.phase, worker.attempt) == (pids[0], "train", 1)
        assert worker.step > step
        assert second.hellos[0].epoch == 1

    on_node(body)


def test_what_was_not_acknowledged_comes_again(on_node) -> None:
    async def body(node: Node) -> None:
        forgetful = await node.daemon(acks=False)
        node.start()
        await until(lambda: forgetful.hellos)
        forgetful.order(join(), workload("--steps", "20"))
        await forgetful.event(WorkerExited)
        second = await node.daemon(epoch=2)
        await second.event(WorkerExited)
        assert second.order_of_events == forgetful.order_of_events
        assert all(report.age_ns > 0 for report in second.reports)

    on_node(body)


def test_an_old_daemon_is_not_obeyed(on_node) -> None:
    async def body(node: Node) -> None:
        old = await node.started()
        old.order(join(), TRAIN)
        await old.stepping(1)
        new = await node.daemon(epoch=2)
        await until(lambda: new.hellos)
        new.order(leave(1))
        await new.event(WorkerLeft)
        # The old one overwrites the address and commands again.
        again = await node.daemon(epoch=1)
        await until(lambda: again.hellos)
        assert again.hellos[0].epoch == 2
        again.order(stop(1, grace_s=0.0))
        await until(lambda: again.gone)
        await until(lambda: len(again.hellos) > 1)
        assert node.ping()["workers"] == 1
        assert again.events(WorkerExited) == []

    on_node(body)


def test_the_epoch_outlives_the_supervisor(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(stop(), epoch=7)
        await until(lambda: (node.dir / "epoch").exists())
        node.processes[0].kill()
        await until(lambda: daemon.gone)
        node.start()
        await until(lambda: len(daemon.hellos) == 2)
        assert daemon.hellos[1].epoch == 7
        daemon.order(join(), TRAIN, epoch=6)
        await until(lambda: len(daemon.gone) == 2)
        assert node.ping()["workers"] == 0

    on_node(body)


def test_an_order_for_another_node_is_refused(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        order = Order(epoch=1, command=stop().__class__(node="n9", run="r", attempt=1, grace_s=0.0, why="test"))
        assert daemon.hub.send("n0", order)
        assert "n9" in (await daemon.event(CommandFailed)).error

    on_node(body)


# --- logs


def test_logs_are_read_in_chunks(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        daemon.order(leave(1))
        daemon.order(join(2), TRAIN)
        await daemon.stepping(2)

        async def read(**fields: object) -> object:
            count = len(daemon.chunks)
            given = {"request": count, "run": "r", "rank": 0, "attempt": 0, "offset": 0, **fields}
            assert daemon.hub.send("n0", ReadLog(**given))  # type: ignore[arg-type]
            await until(lambda: len(daemon.chunks) > count)
            assert daemon.chunks[-1].request == count
            return daemon.chunks[-1]

        first = await read(attempt=1, limit=6)
        assert (first.text, first.next_offset, first.attempt) == ("joined", 6, 1)
        assert (await read(attempt=1, offset=6)).text.startswith(" attempt 1")
        assert (await read(rank=5)).error
        assert (await read(attempt=9)).error
        assert (await read(run="../..")).error
        # The fake does not move its output to the new attempt's file, so the newest log is still the first.
        assert (await read()).attempt == 1

    on_node(body)


# --- one supervisor a node


def test_the_agent_finds_it_and_a_second_one_is_refused(on_node) -> None:
    async def body(node: Node) -> None:
        await node.started()
        said = node.ping()
        assert (said["node"], said["pid"], said["boot_id"]) == ("n0", node.processes[0].pid, "boot-1")
        second = node.start()
        assert await asyncio.to_thread(second.wait, 20) == 1
        assert f"process {said['pid']} supervises" in (node.folder / "supervisor.log").read_text()
        assert node.ping()["pid"] == said["pid"]
        path = paths.control_socket(node.sockets, "n0")
        assert path.stat().st_mode & 0o777 == 0o600

    on_node(body)


def test_nonsense_on_its_sockets_disturbs_nothing(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        for data in (b"garbage\n", b"[1]\n", b"{}\n", b'{"op":"format"}\n', b"x" * 200_000, b'{"type":"bye"}\n', b"\xff\n",
                     b'{"type":"hello","version":9,"run":"r","rank":0,"pid":1}\n'):  # fmt: skip
            for name in ("control", "worker"):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(node.sockets / f"n0.{name}"))
                    try:
                        sock.sendall(data)
                    except BrokenPipeError:
                        continue
        seen = len(daemon.seen)
        await until(lambda: len(daemon.seen) > seen and node.ping())
        assert len(daemon.hellos) == 1

    on_node(body)


def test_who_claims_a_rank_that_another_holds_is_killed(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        claim = (
            "import socket, time; s = socket.socket(socket.AF_UNIX); "
            f"s.connect({str(node.sockets / 'n0.worker')!r}); "
            's.sendall(b\'{"type":"hello","version":1,"run":"r","rank":0,"pid":1,"attempt":1}\\n\'); time.sleep(60)'
        )
        intruder = subprocess.Popen([sys.executable, "-c", claim])
        try:
            assert await asyncio.to_thread(intruder.wait, 20) == -signal.SIGKILL
        finally:
            intruder.kill()
        assert daemon.events(WorkerExited) == []

    on_node(body)


def test_the_supervisor_of_the_nodes_next_life_waits_for_the_one_before_to_end(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), workload("--deaf"))
        await daemon.stepping(1)
        node.start("--boot-id", "boot-2")
        node.processes[0].terminate()
        await until(lambda: len(daemon.hellos) == 2)
        assert daemon.hellos[1].boot_id == "boot-2"
        assert daemon.hellos[1].workers == ()
        assert await asyncio.to_thread(node.processes[0].wait, 20) == 0

    on_node(body)


# --- ends


def test_shutdown_ends_everything(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(gpus=1)
        daemon.order(store(), TRAIN)
        daemon.order(join(ranks=(0, 1)), TRAIN)
        daemon.order(join(run="plain"), {"command": ["sleep", "60"], "run_dir": "/tmp"})
        await daemon.stepping(1, (0, 1))
        assert daemon.hub.send("n0", Shutdown(why="the cluster goes down"))
        assert await asyncio.to_thread(node.processes[0].wait, 20) == 0
        assert len(daemon.events(WorkerExited)) == 3
        assert node.leftovers() == []
        assert list(node.sockets.iterdir()) == []

    on_node(body)


def test_the_control_socket_and_sigterm_end_it_too(on_node) -> None:
    async def body(node: Node) -> None:
        await node.started()
        assert control.shut_down(node.sockets, "n0")
        assert await asyncio.to_thread(node.processes[0].wait, 20) == 0
        node.start()
        await until(node.ping)
        node.processes[1].terminate()
        assert await asyncio.to_thread(node.processes[1].wait, 20) == 0
        assert node.leftovers() == []

    on_node(body)


def test_without_its_raylet_the_node_stops_writing(on_node) -> None:
    async def body(node: Node) -> None:
        raylet = sleeper()
        try:
            daemon = await node.started("--raylet-pid", str(raylet.pid))
            daemon.order(store(), TRAIN)
            daemon.order(join(ranks=(0, 1)), workload("--deaf"))
            await daemon.stepping(1, (0, 1))
            raylet.kill()
            lost = await daemon.event(NodeLost)
            assert (lost.node, lost.evidence) == ("n0", "its raylet ended")
            await asyncio.to_thread(node.processes[0].wait, 20)
            assert {event.signal for event in daemon.events(WorkerExited)} == {signal.SIGKILL}
            assert node.leftovers() == []
        finally:
            raylet.kill()
            raylet.wait()

    on_node(body)


def test_a_raylet_that_is_gone_already_counts_too(on_node) -> None:
    async def body(node: Node) -> None:
        raylet = sleeper()
        raylet.kill()
        raylet.wait()
        daemon = await node.daemon()
        node.start("--raylet-pid", str(raylet.pid))
        await asyncio.to_thread(node.processes[0].wait, 20)
        assert node.leftovers() == []
        assert daemon.events(WorkerExited) == []

    on_node(body)


def test_a_new_supervisor_takes_over_the_trainers_of_a_killed_one(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(store(), TRAIN)
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        pid = daemon.latest(0).pid
        node.processes[0].kill()
        node.processes[0].wait()
        daemon.seen.clear()
        node.start()
        await daemon.stepping(1)
        assert daemon.latest(0).pid == pid
        assert daemon.latest(0).phase == "train"
        daemon.order(leave(1))
        await daemon.event(WorkerLeft)
        daemon.order(join(2), TRAIN)
        await daemon.stepping(2)
        assert daemon.latest(0).pid == pid
        os.kill(pid, signal.SIGKILL)
        exited = await daemon.event(WorkerExited)
        assert (exited.attempt, exited.exit_code, exited.signal) == (2, None, None)

    on_node(body)


def test_a_killed_supervisor_leaves_nothing_behind(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started(gpus=1)
        daemon.order(join(), TRAIN)
        daemon.order(join(run="plain"), {"command": ["sleep", "61.5"], "run_dir": "/tmp"})
        await daemon.stepping(1)
        await until(lambda: any(status.run == "plain" for status in daemon.seen))
        plain = next(status.pid for status in daemon.seen if status.run == "plain")
        await until(lambda: psutil.Process(plain).name() == "sleep")
        node.processes[0].kill()
        node.processes[0].wait()
        await until(lambda: not node.leftovers() and not psutil.pid_exists(plain))

    on_node(body)


def test_a_file_as_key_that_others_can_read_is_refused(on_node) -> None:
    async def body(node: Node) -> None:
        (node.folder / "key").chmod(0o644)
        assert await asyncio.to_thread(node.start().wait, 20) == 1
        said = (node.folder / "supervisor.log").read_text()
        assert "others can read it" in said
        assert "Traceback" not in said

    on_node(body)


def test_a_socket_folder_that_others_can_reach_is_refused(on_node) -> None:
    async def body(node: Node) -> None:
        node.sockets.chmod(0o755)
        assert await asyncio.to_thread(node.start().wait, 20) == 1
        assert "chmod 700" in (node.folder / "supervisor.log").read_text()

    on_node(body)


def test_the_end_reaches_processes_that_left_their_trainers_session(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        script = "setsid sleep 62.5 & echo $!; wait"
        daemon.order(join(), {"command": ["sh", "-c", script], "run_dir": "/tmp"})
        log = paths.rank_log(node.dir, "r", 1, 0)
        await until(lambda: log.exists() and log.read_text().strip())
        left_behind = int(log.read_text())
        assert psutil.pid_exists(left_behind)
        node.processes[0].terminate()
        assert await asyncio.to_thread(node.processes[0].wait, 20) == 0
        assert not psutil.pid_exists(left_behind)

    on_node(body)
