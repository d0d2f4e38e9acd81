"""Trainers brought into attempts, let go, and ended, by a real supervisor."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from node_harness import TRAIN, Node, join, leave, stop, until, workload

from orchestrator.recovery.events import (
    CheckpointCommitted,
    CommandFailed,
    WorkerExited,
    WorkerFault,
    WorkerLeft,
)


def test_ranks_are_forked_join_and_train(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(ranks=(2, 3)), TRAIN)
        await daemon.stepping(1, (2, 3))
        phases = [status.phase for status in daemon.seen if status.rank == 2]
        assert [phase for i, phase in enumerate(phases) if phase not in phases[:i]] == [
            "starting", "init", "restore", "train",
        ]  # fmt: skip
        status = daemon.latest(3)
        assert (status.source, status.restored_step, status.first_step, status.loss) == ("init", 0, 1, 2.0)
        assert status.data_ms_total == pytest.approx(2 * status.checkpoint_ms_total)
        assert psutil.Process(status.pid).ppid() == node.processes[0].pid
        assert os.getsid(status.pid) == status.pid
        log = node.dir / "runs" / "r" / "attempt-1" / "rank-3.log"
        assert "joined attempt 1 of 4 with {'host': '127.0.0.1', 'port': 4711}" in log.read_text()

    on_node(body)


def test_the_same_order_again_changes_nothing(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        pid = daemon.latest(0).pid
        daemon.order(join(), TRAIN)
        seen = len(daemon.seen)
        await until(lambda: len(daemon.seen) > seen + 3)
        assert daemon.latest(0).pid == pid
        assert node.ping()["workers"] == 1
        assert daemon.events(WorkerExited) == []

    on_node(body)


def test_a_gang_forms_again_with_the_same_processes(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(ranks=(0, 1)), TRAIN)
        await daemon.stepping(1, (0, 1))
        pids = [daemon.latest(rank).pid for rank in (0, 1)]
        daemon.order(leave(1))
        await daemon.event(WorkerLeft, 2)
        for left in daemon.events(WorkerLeft):
            assert (left.attempt, left.holds_state, left.why) == (1, True, "a peer went away")
            assert left.voted_step == left.step + 1
        daemon.order(join(2, ranks=(0, 1), restore="peers"), TRAIN)
        await daemon.stepping(2, (0, 1))
        assert [daemon.latest(rank).pid for rank in (0, 1)] == pids

    on_node(body)


def test_leaving_is_answered_again(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        daemon.order(leave(1))
        first = await daemon.event(WorkerLeft)
        daemon.order(leave(1))
        assert await daemon.event(WorkerLeft, 2) == first

    on_node(body)


def test_a_leave_for_an_attempt_that_never_reached_the_node_is_answered_with_it(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(1), TRAIN)
        await daemon.stepping(1)
        daemon.order(leave(2))
        assert (await daemon.event(WorkerLeft)).attempt == 2
        daemon.order(join(3), TRAIN)
        await daemon.stepping(3)

    on_node(body)


def test_a_trainer_that_has_not_said_hello_is_out_at_once_and_joins_later(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(1), workload("--silent-s", "0.4"))
        daemon.order(leave(1))
        left = await daemon.event(WorkerLeft)
        assert not left.holds_state
        daemon.order(join(2), TRAIN)
        await daemon.stepping(2)
        assert all(status.attempt == 2 for status in daemon.seen if status.phase == "train")

    on_node(body)


def test_a_killed_rank_is_seen_and_replaced_alone(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(ranks=(0, 1)), TRAIN)
        await daemon.stepping(1, (0, 1))
        survivor, victim = (daemon.latest(rank).pid for rank in (0, 1))
        os.kill(victim, signal.SIGKILL)
        exited = await daemon.event(WorkerExited)
        assert (exited.rank, exited.attempt, exited.signal, exited.exit_code) == (1, 1, signal.SIGKILL, None)
        assert not exited.completed
        assert "SIGKILL" in exited.detail
        daemon.order(leave(1))
        await daemon.event(WorkerLeft)
        daemon.order(join(2, ranks=(0, 1), restore="peers"), TRAIN)
        await daemon.stepping(2, (0, 1))
        assert daemon.latest(0).pid == survivor
        assert daemon.latest(1).pid != victim

    on_node(body)


def test_an_exit_of_its_own_says_why(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), workload("--fail-at", "3"))
        exited = await daemon.event(WorkerExited)
        assert (exited.exit_code, exited.completed) == (3, False)
        assert exited.detail.endswith("last line of its log: RuntimeError: the loss went away")
        fault = daemon.events(WorkerFault)[0]
        assert (fault.fault, fault.detail, fault.attempt) == ("exception", "the loss went away", 1)
        kinds = [type(event) for event in daemon.order_of_events]
        assert kinds.index(WorkerFault) < kinds.index(WorkerExited)

    on_node(body)


def test_completion_counts_before_the_exit_and_a_late_join_does_not_start_it_again(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), workload("--steps", "20", "--step-s", "0.001"))
        exited = await daemon.event(WorkerExited)
        assert (exited.completed, exited.exit_code) == (True, 0)
        assert [event.step for event in daemon.events(CheckpointCommitted)] == [10, 20]
        assert daemon.latest(0).step == 20
        daemon.order(join(), workload("--steps", "20"))
        assert await daemon.event(WorkerExited, 2) == exited
        assert node.ping()["workers"] == 0

    on_node(body)


def test_a_trainer_that_leaves_a_process_behind_is_still_buried_and_so_is_the_process(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), workload("--steps", "5", "--child"))
        exited = await daemon.event(WorkerExited)
        assert exited.completed
        # Only the supervisor and its standby are left.
        await until(lambda: len(node.leftovers()) == 2)

    on_node(body)


def test_a_polite_stop_and_a_hard_one(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(ranks=(0,)), TRAIN)
        daemon.order(join(ranks=(0,), run="deaf"), workload("--deaf"))
        await until(lambda: {status.run for status in daemon.seen if status.first_step} == {"r", "deaf"})
        daemon.order(stop())
        exited = await daemon.event(WorkerExited)
        assert (exited.run, exited.exit_code, exited.completed) == ("r", 0, False)
        daemon.order(stop(run="deaf", grace_s=0.1))
        exited = await daemon.event(WorkerExited, 2)
        assert (exited.run, exited.signal) == ("deaf", signal.SIGKILL)
        daemon.order(stop())
        daemon.order(join(2), TRAIN)
        await daemon.stepping(2)

    on_node(body)


def test_a_stopped_process_is_killed_after_the_grace(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), TRAIN)
        await daemon.stepping(1)
        os.kill(daemon.latest(0).pid, signal.SIGSTOP)
        daemon.order(stop(grace_s=0.05))
        assert (await daemon.event(WorkerExited)).signal == signal.SIGKILL

    on_node(body)


def test_a_stop_for_an_attempt_that_never_reached_the_trainer_is_answered_with_it(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(1), TRAIN)
        await daemon.stepping(1)
        daemon.order(stop(2, grace_s=0.0))
        exited = await daemon.event(WorkerExited)
        assert (exited.attempt, exited.signal) == (2, signal.SIGKILL)

    on_node(body)


def test_ranks_that_the_gang_does_not_name_are_stopped(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(1, ranks=(0, 1)), TRAIN)
        await daemon.stepping(1, (0, 1))
        daemon.order(join(2, ranks=(0,)), TRAIN)
        exited = await daemon.event(WorkerExited)
        assert (exited.rank, exited.attempt) == (1, 1)
        await daemon.stepping(2)

    on_node(body)


def test_orders_of_an_old_attempt_are_passed_over(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(2), TRAIN)
        await daemon.stepping(2)
        daemon.order(join(1), TRAIN)
        daemon.order(stop(1, grace_s=0.0))
        daemon.order(leave(1))
        daemon.order(join(1, run="later"), TRAIN)
        await until(lambda: any(status.run == "later" for status in daemon.seen))
        assert {status.attempt for status in daemon.seen if status.run == "r"} == {2}
        assert daemon.events(WorkerExited) == []
        assert daemon.events(WorkerLeft) == []

    on_node(body)


def test_orders_that_cannot_be_carried_out_are_answered_with_the_reason(on_node) -> None:
    refused = [
        (join(), None, "without a workload"),
        (join(), {"argv": ["fail"], "run_dir": "/tmp"}, "no such workload"),
        (join(), {"run_dir": "/tmp"}, "either argv or command"),
        (join(), {"argv": "train"}, "malformed"),
        (join(), {"command": ["./there-is-none"], "run_dir": "/no/such/folder"}, "/no/such/folder"),
        (join(run="../../etc"), TRAIN, "no name of a run"),
    ]

    async def body(node: Node) -> None:
        daemon = await node.started()
        for count, (command, launch, says) in enumerate(refused, start=1):
            daemon.order(command, launch)
            failed = await daemon.event(CommandFailed, count)
            assert (failed.command, failed.run, failed.attempt) == ("join_gang", command.run, 1)
            assert says in failed.error
        assert node.ping()["workers"] == 0

    on_node(body)


def test_a_command_without_the_protocol_gets_torchruns_environment_and_its_exit_counts(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        script = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $GROUP_RANK $MASTER_ADDR:$MASTER_PORT $MINE"; test $RANK = 2'
        launch = {"command": ["sh", "-c", script], "run_dir": "/tmp", "env": {"MINE": "yes"}}
        daemon.order(join(ranks=(2, 3)), launch)
        await daemon.event(WorkerExited, 2)
        by_rank = {event.rank: event for event in daemon.events(WorkerExited)}
        assert (by_rank[2].completed, by_rank[2].exit_code) == (True, 0)
        assert (by_rank[3].completed, by_rank[3].exit_code) == (False, 1)
        assert by_rank[3].detail.endswith("3 1 4 1 127.0.0.1:4711 yes")
        assert {status.phase for status in daemon.seen} == {"train"}

    on_node(body)


def test_a_command_without_the_protocol_is_started_again_for_each_attempt(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        launch = {"command": ["sleep", "60"], "run_dir": "/tmp"}
        daemon.order(join(1), launch)
        await until(lambda: daemon.seen)
        first = daemon.latest(0).pid
        daemon.order(join(2), launch)
        exited = await daemon.event(WorkerExited)
        assert (exited.attempt, exited.completed) == (1, False)
        await until(lambda: daemon.latest(0).attempt == 2)
        assert daemon.latest(0).pid != first
        daemon.order(leave(2))
        exited = await daemon.event(WorkerExited, 2)
        assert (exited.attempt, exited.signal, exited.completed) == (2, signal.SIGTERM, False)

    on_node(body)


def test_a_command_that_does_not_exist_says_so(on_node) -> None:
    async def body(node: Node) -> None:
        daemon = await node.started()
        daemon.order(join(), {"command": ["no-such-program"], "run_dir": "/tmp"})
        exited = await daemon.event(WorkerExited)
        assert "cannot run no-such-program" in exited.detail

    on_node(body)
