"""The fake supervisor keeps the promises that commands.py makes for the real one."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from orchestrator.recovery.commands import JoinGang, LeaveGang, StartStore, StopWorkers
from orchestrator.recovery.events import GangFormed, NodeLost, NodeReady, StoreReady, WorkerExited, WorkerLeft
from orchestrator.simulator.cluster import SimCluster
from orchestrator.simulator.shape import draw_shape
from orchestrator.simulator.timeline import S

RUN = "run-0"
STORE = StartStore(node="n0", run=RUN, attempt=1)


@pytest.fixture
def cluster() -> SimCluster:
    rng = random.Random(1)
    shape = draw_shape(1, rng)
    job = shape.jobs[0]
    plan = replace(job.plan, nodes=2, ranks_per_node=1, replicas=2, shards=1, speaks_protocol=True)
    shape = replace(
        shape,
        jobs=(replace(job, plan=plan, steps=10_000, step_ns=S),),
        duplicate_share=0.0,
        late_share=0.0,
        says_unreachable=False,
    )
    cluster = SimCluster(shape, rng, until_ns=10_000 * S)
    cluster.epoch = 1
    cluster.daemon_started()
    pass_time(cluster, 1)
    return cluster


def pass_time(cluster: SimCluster, seconds: float) -> list:
    """Every event of the next `seconds`."""
    until_ns = cluster.now_ns() + int(seconds * S)
    events = []
    while (event := cluster.next_event(until_ns)) is not None:
        events.append(event)
    return events


def join(attempt: int, index: int) -> JoinGang:
    return JoinGang(
        node=f"n{index}", run=RUN, attempt=attempt, ranks=(index,), world_size=2, replicas=2, shards=1, store_host="n0",
        store_port=1, restore="peers",
    )  # fmt: skip


def form(cluster: SimCluster, attempt: int = 1) -> list:
    cluster.execute((replace(STORE, attempt=attempt),))
    events = pass_time(cluster, 1)
    cluster.execute((join(attempt, 0), join(attempt, 1)))
    return events + pass_time(cluster, 10)


def of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_a_gang_forms_and_a_later_attempt_keeps_its_trainers(cluster):
    assert len(of(GangFormed, form(cluster))) == 1
    trainers = set(cluster.live_trainers())
    cluster.execute(
        (LeaveGang(node="n0", run=RUN, attempt=1, why="test"), LeaveGang(node="n1", run=RUN, attempt=1, why="t"))
    )
    left = of(WorkerLeft, pass_time(cluster, 1))
    assert {event.rank for event in left} == {0, 1}
    assert all(event.holds_state for event in left)
    assert of(GangFormed, form(cluster, attempt=2))[0].attempt == 2
    assert set(cluster.live_trainers()) == trainers


def test_an_older_attempt_is_ignored_and_counted(cluster):
    form(cluster, attempt=2)
    cluster.execute((STORE, join(1, 0), LeaveGang(node="n0", run=RUN, attempt=1, why="late")))
    events = pass_time(cluster, 2)
    assert of(StoreReady, events) == of(WorkerLeft, events) == []
    assert cluster.nodes["n0"].stale_attempts == 3


def test_an_older_epoch_is_ignored_and_counted(cluster):
    cluster.epoch = 5
    form(cluster)
    cluster.epoch = 4
    cluster.execute((StopWorkers(node="n0", run=RUN, attempt=1, grace_s=0.0, why="old daemon"),))
    assert of(WorkerExited, pass_time(cluster, 2)) == []
    assert cluster.nodes["n0"].stale_epochs == 1


def test_commands_sent_twice_do_their_work_once(cluster):
    form(cluster)
    trainers = cluster.live_trainers()
    cluster.execute((STORE, join(1, 0), join(1, 1)))
    events = pass_time(cluster, 2)
    assert len(of(StoreReady, events)) == 1
    assert of(GangFormed, events) == of(WorkerExited, events) == []
    assert cluster.live_trainers() == trainers


def test_a_leave_is_answered_again_by_one_that_has_left(cluster):
    form(cluster)
    leave = LeaveGang(node="n0", run=RUN, attempt=1, why="test")
    cluster.execute((leave,))
    assert any(event.rank == 0 for event in of(WorkerLeft, pass_time(cluster, 1)))
    cluster.execute((leave,))
    again = of(WorkerLeft, pass_time(cluster, 1))
    assert [(event.rank, event.holds_state) for event in again] == [(0, True)]


def test_events_wait_while_there_is_no_daemon_and_come_after_it_is_back(cluster):
    form(cluster)
    cluster.daemon_died()
    trainer = cluster.nodes["n1"].trainers[(RUN, 1)]
    cluster.nodes["n1"].ended(trainer, signal=9)
    cluster.settle(5 * S)
    cluster.daemon_started()
    events = pass_time(cluster, 2)
    exits = of(WorkerExited, events)
    assert [(event.rank, event.signal) for event in exits] == [(1, 9)]
    assert {event.node for event in of(NodeReady, events)} == set(cluster.nodes)
    assert cluster.now_ns() - exits[0].observed_at_ns > 4 * S


def test_what_was_not_acknowledged_is_sent_again(cluster):
    """Taking an event acknowledges the one before; the last one taken before a crash was never durable."""
    cluster.execute((STORE,))
    while not isinstance(cluster.next_event(None), StoreReady):
        pass
    cluster.daemon_died()
    cluster.daemon_started()
    assert len(of(StoreReady, pass_time(cluster, 2))) == 1
    cluster.daemon_died()
    cluster.daemon_started()
    assert of(StoreReady, pass_time(cluster, 2)) == []


def test_a_frozen_trainer_answers_nothing_until_it_is_killed(cluster):
    form(cluster)
    node = cluster.nodes["n0"]
    node.freeze(node.trainers[(RUN, 0)])
    cluster.execute((LeaveGang(node="n0", run=RUN, attempt=1, why="hung"),))
    assert of(WorkerLeft, pass_time(cluster, 3)) == []
    cluster.execute((StopWorkers(node="n0", run=RUN, attempt=1, grace_s=1.0, why="hung"),))
    exits = of(WorkerExited, pass_time(cluster, 3))
    assert [(event.rank, event.signal) for event in exits] == [(0, 9)]


def test_a_lost_machine_is_noticed_and_comes_back_empty(cluster):
    form(cluster)
    cluster.nodes["n0"].lose()
    assert [event.node for event in of(NodeLost, pass_time(cluster, 10))] == ["n0"]
    cluster.nodes["n0"].boot()
    ready = of(NodeReady, pass_time(cluster, 2))
    assert [(event.node, event.workers) for event in ready] == [("n0", ())]
    assert ready[0].boot_id == "n0-boot-2"


def test_a_broken_line_that_comes_back_in_time_loses_no_node(cluster):
    form(cluster)
    cluster.link.cut("n0")
    cluster.link.connect("n0")
    events = pass_time(cluster, 10)
    assert of(NodeLost, events) == []
    assert of(NodeReady, events)[0].workers == ((RUN, 1, 0),)
