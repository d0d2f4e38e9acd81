"""The loop: write before act, one bad event stops nothing, time never goes back."""

from __future__ import annotations

import threading
from itertools import pairwise

import msgspec
import pytest

from orchestrator.controller import POISON_PAUSE_NS, Controller
from orchestrator.journal.memory import MemoryJournal
from orchestrator.recovery import deadlines
from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.events import DaemonStarted, DeadlinePassed, FaultInjected, NodeLost, NodeReady
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, State

S = 1_000_000_000
PROBE = ProbeNode(node="n0", purpose="probation")


class ScriptedCluster:
    """Gives events one by one; then, with a deadline, jumps to it, else stops the controller."""

    def __init__(self, events=(), now_ns: int = 10 * S) -> None:
        self.events = list(events)
        self.clock_ns = now_ns
        self.log: list = []
        self.controller: Controller | None = None

    def now_ns(self) -> int:
        return self.clock_ns

    def next_event(self, until_ns):
        self.log.append("next")
        if self.events:
            return self.events.pop(0)
        if until_ns is None:
            self.controller.stop()
        else:
            self.clock_ns = max(self.clock_ns, until_ns)
        return None

    def execute(self, commands) -> None:
        self.log.append(commands)


class LoggingJournal(MemoryJournal):
    def __init__(self, log: list) -> None:
        super().__init__()
        self.log = log

    def append(self, event, decision) -> int:
        self.log.append("append")
        return super().append(event, decision)


def accept(state, event, policy):
    """Probe on NodeLost, raise on FaultInjected, drop the deadline on DeadlinePassed, else only take the time."""
    if isinstance(event, FaultInjected):
        raise KeyError(event.node)
    heap = None if isinstance(event, DeadlinePassed) else state.deadlines
    after = msgspec.structs.replace(state, at_ns=event.at_ns, deadlines=heap)
    return Decision(state=after, commands=(PROBE,) if isinstance(event, NodeLost) else (), reason="because")


def make(events=(), decide=accept, state=None, **options) -> tuple[Controller, ScriptedCluster, LoggingJournal]:
    cluster = ScriptedCluster(events)
    journal = LoggingJournal(cluster.log)
    controller = Controller(cluster, journal, state or State(), Policy(), decide=decide, **options)
    cluster.controller = controller
    return controller, cluster, journal


def with_deadline(at_ns: int) -> State:
    return State(deadlines=deadlines.push(None, (at_ns, "run")))


LOST = NodeLost(node="n0", evidence="no beat")
BAD = FaultInjected(node="n0", fault="xid")
READY = NodeReady(node="n0", gpus=8, boot_id="b")


def test_a_command_is_executed_only_after_its_entry_is_written():
    controller, cluster, _ = make([LOST])
    controller.run()
    assert cluster.log == ["next", "append", (PROBE,), "next"]


def test_nothing_is_executed_when_the_journal_cannot_write():
    controller, cluster, journal = make([LOST])

    def full(event, decision):
        raise OSError("disk full")

    journal.append = full
    with pytest.raises(OSError, match="disk full"):
        controller.run()
    assert (PROBE,) not in cluster.log
    assert controller.state.at_ns == 0


def test_a_bad_event_is_journaled_as_poison_and_the_loop_goes_on():
    controller, cluster, journal = make([BAD, LOST])
    controller.run()
    poison, good = journal.written
    assert (poison.event.fault, poison.error, poison.commands) == ("xid", "KeyError: 'n0'", ())
    assert good.error == ""
    assert (controller.poisoned, controller.events) == (1, 1)
    assert (PROBE,) in cluster.log


def test_strict_raises_what_decide_raises():
    controller, _, journal = make([BAD], strict=True)
    with pytest.raises(KeyError):
        controller.run()
    assert journal.written == []


def test_time_never_goes_back():
    controller, cluster, journal = make([READY, READY, READY])
    for now_ns in (50 * S, 20 * S, 60 * S):
        cluster.clock_ns = now_ns
        controller.step()
    assert [entry.at_ns for entry in journal.written] == [50 * S, 50 * S, 60 * S]


def test_a_deadline_becomes_an_event_when_it_is_reached():
    controller, _, journal = make(state=with_deadline(15 * S))
    controller.run()
    assert [(type(entry.event), entry.at_ns) for entry in journal.written] == [(DeadlinePassed, 15 * S)]


def test_an_early_wake_up_is_no_deadline():
    controller, cluster, journal = make(state=with_deadline(15 * S))
    cluster.next_event = lambda until_ns: None
    controller.step()
    assert journal.written == []


def test_a_deadline_that_cannot_be_decided_on_is_tried_again_later_each_time():
    tries = []

    def broken(state, event, policy):
        tries.append(event.at_ns)
        if len(tries) == 4:
            controller.stop()
        raise RuntimeError("bug")

    controller, _, journal = make(decide=broken, state=with_deadline(15 * S))
    controller.run()
    gaps_ns = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps_ns == [POISON_PAUSE_NS, 2 * POISON_PAUSE_NS, 4 * POISON_PAUSE_NS]
    assert len(journal.written) == 4


def test_a_failing_execute_or_listener_is_counted_and_the_decision_stands():
    heard = []

    def deaf(event, decision):
        raise ValueError("listener")

    controller, cluster, journal = make([LOST, READY], listeners=(deaf, lambda event, decision: heard.append(event)))

    def unplugged(commands):
        raise ConnectionError("no route")

    cluster.execute = unplugged
    controller.run()
    assert controller.failures == 3
    assert len(journal.written) == 2
    assert [type(event) for event in heard] == [NodeLost, NodeReady]


def test_listeners_hear_of_the_decision_when_the_state_holds_it():
    seen = []
    controller, _, _ = make(
        [READY], listeners=(lambda event, decision: seen.append(controller.state is decision.state),)
    )
    controller.run()
    assert seen == [True]


def test_start_takes_over_with_a_newer_epoch_and_the_policy():
    controller, _, journal = make()
    controller.start(3)
    event = journal.written[0].event
    assert isinstance(event, DaemonStarted)
    assert (event.epoch, event.policy) == (3, Policy())


def test_start_refuses_an_epoch_that_is_not_newer():
    controller, _, journal = make(state=State(epoch=3))
    with pytest.raises(ValueError, match="another daemon"):
        controller.start(3)
    assert journal.written == []


def test_the_state_can_be_read_from_another_thread_while_the_loop_runs():
    controller, cluster, _ = make()
    served = threading.Event()
    fed = iter(range(10_000))

    def forever(until_ns):
        cluster.clock_ns += S
        next(fed)
        served.set()
        return READY

    cluster.next_event = forever
    thread = threading.Thread(target=controller.run)
    thread.start()
    assert served.wait(30)
    earlier = controller.state.at_ns
    controller.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert controller.state.at_ns >= earlier
