"""One fault at a time in an otherwise smooth world: what the controller makes of it, told by the ledger and the incidents."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from orchestrator.recovery.commands import Command, LeaveGang
from orchestrator.recovery.events import RunPlan
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Cause, NodeHealth, Rung, RunPhase, RunState, State
from orchestrator.simulator.faults import Fault
from orchestrator.simulator.run import simulate
from orchestrator.simulator.shape import Job, Shape, draw_shape
from orchestrator.simulator.timeline import START_NS, S

FAULT_AT_NS = 40 * S
SEEDS = range(8)


def smooth(seed: int, nodes: int = 5) -> Shape:
    """Four nodes as 2 replicas of 2 shards, one run of 200 steps of a second, the rest spares."""
    plan = RunPlan(nodes=4, replicas=2, shards=2)
    return replace(
        draw_shape(seed, random.Random(seed)),
        nodes=tuple(f"n{i}" for i in range(nodes)),
        jobs=(Job(run="run-0", plan=plan, submit_ns=S, steps=200, step_ns=S, interval=50),),
        policy=Policy(),
        horizon_ns=100 * S,
        duplicate_share=0.0,
        late_share=0.0,
        node_loss_ns=S,
        hang_ns=2 * S,
    )


def placement(shape: Shape) -> tuple[str, ...]:
    """Where the run is put in an undisturbed history of this shape: node i holds rank i."""
    placements = []
    simulate(
        shape.seed,
        shape=shape,
        faults=(),
        tracer=lambda _, d: placements.extend(r.placement for r in d.state.runs.values()),
    )
    return next(nodes for nodes in placements if nodes)


def strike(shape: Shape, *faults: Fault) -> tuple[list[State], list[Command]]:
    """Every state and all commands of a history that ends well."""
    states: list[State] = []
    commands: list[Command] = []

    def keep(event, decision) -> None:
        states.append(decision.state)
        commands.extend(decision.commands)

    outcome = simulate(shape.seed, shape=shape, faults=faults, tracer=keep)
    assert outcome.ok, outcome.violations
    assert states[-1].runs["run-0"].phase is RunPhase.COMPLETED
    return states, commands


def play(seed: int, *kinds: str, nodes: int = 5, spare: bool = False) -> tuple[list[State], list[Command]]:
    """The faults strike the node of rank 0, or a spare."""
    shape = smooth(seed, nodes)
    gang = placement(shape)
    node = next(name for name in shape.nodes if name not in gang) if spare else gang[0]
    return strike(shape, *(Fault(kind=kind, at_ns=FAULT_AT_NS, node=node) for kind in kinds))


def after(seed: int, *kinds: str, nodes: int = 5) -> tuple[RunState, list[Command]]:
    """The run at its end, and all commands."""
    states, commands = play(seed, *kinds, nodes=nodes)
    return states[-1].runs["run-0"], commands


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_nothing_is_recovered_and_every_second_has_a_cause(seed):
    run, commands = after(seed)
    assert run.incidents == ()
    assert not [c for c in commands if isinstance(c, LeaveGang)]
    assert sum(run.ledger.accounts.values()) == run.finished_ns - run.submitted_ns
    assert set(run.ledger.accounts) <= {
        Cause.START, Cause.TRAINING, Cause.WAITING_FOR_CAPACITY, Cause.CHECKPOINT_STALL, Cause.DATA_STALL,
    }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["crash", "hang", "lose_node", "worker_exception", "store_loss"])
def test_one_fault_is_recovered_in_place_and_loses_no_step(seed, kind):
    run, _ = after(seed, kind)
    (incident,) = run.incidents
    assert incident.rung is Rung.IN_PLACE
    assert incident.outcome == "recovered"
    assert incident.steps_lost == 0
    assert run.recoveries == 1
    assert run.ledger.accounts.get(Cause.WAITING_FOR_CAPACITY, 0) < S
    assert sum(incident.phases_ns().values()) == incident.ended_at_ns - incident.fault_at_ns


@pytest.mark.parametrize("seed", SEEDS)
def test_the_incident_names_the_cause_whatever_order_the_reports_came_in(seed):
    """Survivors report a lost peer within milliseconds, often before the end of the one that died."""
    causes = {kind: after(seed, kind)[0].incidents[0].cause for kind in ("crash", "lose_node", "hang", "store_loss")}
    assert causes == {
        "crash": "worker_exited", "lose_node": "node_lost", "hang": "worker_hung", "store_loss": "store_lost",
    }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_an_injected_fault_is_dated_to_its_true_time(seed):
    (incident,) = after(seed, "injected_crash")[0].incidents
    assert incident.fault_at_ns == START_NS + FAULT_AT_NS


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sick_gpu_takes_its_node_out_and_the_spare_in(seed):
    states, _ = play(seed, "xid")
    sick = next(state for state in states if state.quarantined)
    run = sick.runs["run-0"]
    (node,) = [name for name, node in sick.nodes.items() if node.health is NodeHealth.QUARANTINED]
    assert node not in run.placement
    recovered = next(state.runs["run-0"] for state in states if state.runs and state.runs["run-0"].incidents)
    assert node not in recovered.placement
    assert recovered.incidents[0].rung is Rung.IN_PLACE
    assert recovered.incidents[0].steps_lost == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["lose_node", "xid", "broken_line", "partition"])
def test_what_happens_to_a_spare_disturbs_no_run(seed, kind):
    states, commands = play(seed, kind, spare=True)
    assert states[-1].runs["run-0"].incidents == ()
    assert not [c for c in commands if isinstance(c, LeaveGang)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_node_without_a_spare_is_waited_for(seed):
    run, _ = after(seed, "lose_node", nodes=4)
    assert run.ledger.accounts[Cause.WAITING_FOR_CAPACITY] > 0
    assert run.incidents[0].outcome == "recovered"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kinds", [("daemon_crash",), ("daemon_crash", "daemon_crash", "daemon_crash")])
def test_the_death_of_the_daemon_disturbs_nobody(seed, kinds):
    run, commands = after(seed, *kinds)
    assert run.incidents == ()
    assert run.attempt == 1
    assert not [c for c in commands if isinstance(c, LeaveGang)]


@pytest.mark.parametrize("seed", SEEDS)
def test_when_a_shard_has_no_holder_left_the_checkpoint_is_used(seed):
    """Ranks 0 and 2 hold the same shard; both die at once, and the steps since the checkpoint are redone."""
    shape = smooth(seed)
    shape = replace(shape, jobs=(replace(shape.jobs[0], interval=10),))
    nodes = placement(shape)
    states, _ = strike(shape, *(Fault(kind="crash", at_ns=FAULT_AT_NS, node=nodes[rank]) for rank in (0, 2)))
    run = states[-1].runs["run-0"]
    incident = run.incidents[0]
    assert incident.rung is Rung.CHECKPOINT
    assert incident.restored_step % 10 == 0
    assert 0 < incident.steps_lost < 10
    # The first of the steps done again ends the recovery, the others and the first new one are charged as redone.
    redone_ns = run.ledger.accounts.get(Cause.REDONE_STEPS, 0)
    assert abs(redone_ns - incident.steps_lost * S) < S
