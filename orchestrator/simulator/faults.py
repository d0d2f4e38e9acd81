"""What goes wrong, drawn from a seed and applied to the world as it is when the time comes.

A fault with a `trigger` waits for the next command of that kind instead: so the second fault falls into a recovery.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from orchestrator.recovery.events import (
    FaultInjected,
    Finding,
    NodeQuarantined,
    NodeReadmitted,
    RunCancelled,
    WorkerFault,
)  # fmt: skip
from orchestrator.simulator.cluster import CrashPlan, SimCluster
from orchestrator.simulator.link import OPERATOR
from orchestrator.simulator.shape import Shape
from orchestrator.simulator.supervisor import Supervisor
from orchestrator.simulator.timeline import MS, S
from orchestrator.simulator.trainer import Trainer


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    at_ns: int  # since the start of the simulation
    trigger: str = ""  # a command's kind, or finish: all steps are done and ranks say bye
    delay_ns: int = 0  # after the trigger
    node: str = ""  # where; empty: drawn when it strikes


TRIGGERS = ("leave_gang", "start_store", "join_gang", "join_gang", "stop_workers", "probe_node", "finish")


def draw_faults(shape: Shape, rng: random.Random) -> tuple[Fault, ...]:
    kinds, weights = zip(*[(kind, weight) for kind, (weight, _) in FAULTS.items()], strict=True)
    faults = []
    for kind in rng.choices(kinds, weights, k=shape.faults):
        trigger = rng.choice(TRIGGERS) if rng.random() < 0.35 else ""
        delay_ns = rng.randrange(2 * S) if rng.random() < 0.7 else rng.randrange(5 * MS)
        faults.append(Fault(kind=kind, at_ns=rng.randrange(S, shape.horizon_ns), trigger=trigger, delay_ns=delay_ns))
    return tuple(sorted(faults, key=lambda fault: fault.at_ns))


def plan_faults(cluster: SimCluster, faults: tuple[Fault, ...]) -> None:
    for fault in faults:
        cluster.timeline.after(fault.at_ns, _begin, cluster, fault)


def _begin(cluster: SimCluster, fault: Fault) -> None:
    def strike() -> None:
        cluster.aim = fault.node
        FAULTS[fault.kind][1](cluster)

    if fault.trigger:
        cluster.when(fault.trigger, fault.delay_ns, strike)
    else:
        strike()


# --- trainers


def _victim(cluster: SimCluster) -> Trainer | None:
    """A trainer that is in a gang, if any is; else any."""
    trainers = [t for t in cluster.live_trainers() if not t.frozen and cluster.aim in ("", t.keeper.name)]
    busy = [trainer for trainer in trainers if trainer.phase == "in"]
    return cluster.rng.choice(busy or trainers) if trainers else None


def crash(cluster: SimCluster) -> None:
    if trainer := _victim(cluster):
        trainer.keeper.ended(trainer, signal=cluster.rng.choice((6, 9, 11)))


def injected_crash(cluster: SimCluster) -> None:
    """A fault test: the supervisor says the true time of the fault, then begins it."""
    if trainer := _victim(cluster):
        said = FaultInjected(node=trainer.keeper.name, fault="kill_worker", fault_at_ns=cluster.now_ns())
        trainer.keeper.report(said)
        cluster.timeline.after(MS, lambda: trainer.keeper.ended(trainer, signal=9))


def worker_exception(cluster: SimCluster) -> None:
    """A trainer reports an error of its own, then leaves, or ends when it can't go on."""
    trainer = _victim(cluster)
    if trainer is None or trainer.phase != "in":
        return
    gang = cluster.nodes[trainer.keeper.name].gang_of(trainer)
    if gang.stage == "finishing":
        return
    kind = cluster.rng.choice(("exception", "not_finite", "out_of_memory", "data", "checkpoint"))
    fault = WorkerFault(
        run=trainer.run,
        attempt=trainer.attempt,
        rank=trainer.rank,
        node=trainer.keeper.name,
        fault=kind,
        detail="simulated",
    )
    trainer.keeper.report(fault)
    if gang.truth.job.plan.speaks_protocol and cluster.rng.random() < 0.5:
        gang.break_(trainer)
        trainer.phase = "waiting"
        trainer.left(trainer.attempt, kind)
    else:
        trainer.keeper.ended(trainer, code=1)


def hang(cluster: SimCluster) -> None:
    if trainer := _victim(cluster):
        cluster.nodes[trainer.keeper.name].freeze(trainer)


def short_hang(cluster: SimCluster) -> None:
    """It moves again, perhaps after it has been given up, and then obeys what it was told meanwhile."""
    if trainer := _victim(cluster):
        node = cluster.nodes[trainer.keeper.name]
        node.freeze(trainer)
        cluster.timeline.after(cluster.rng.randrange(200 * MS, 12 * S), node.thaw, trainer)


def fork_failure(cluster: SimCluster) -> None:
    cluster.rng.choice(list(cluster.nodes.values())).forks_fail += 1


# --- nodes


def _up(cluster: SimCluster) -> Supervisor | None:
    nodes = [node for node in cluster.nodes.values() if node.reachable() and cluster.aim in ("", node.name)]
    return cluster.rng.choice(nodes) if nodes else None


def xid(cluster: SimCluster) -> None:
    """A GPU breaks: the finding and the trainer's end race. Probes see it until the node is repaired."""
    if node := _up(cluster):
        node.sick = f"xid_{cluster.rng.choice((48, 79, 95, 119))}"
        cluster.timeline.after(cluster.rng.randrange(300 * MS), node.find, node.finding())
        for trainer in list(node.trainers.values()):
            match cluster.rng.choice(("dies", "hangs", "lives")):
                case "dies":
                    cluster.timeline.after(cluster.rng.randrange(300 * MS), _die, trainer)
                case "hangs":
                    node.freeze(trainer)
        if cluster.rng.random() < 0.7:
            cluster.timeline.after(cluster.rng.randrange(30 * S, 200 * S), repair, cluster, node)


def _die(trainer: Trainer) -> None:
    trainer.keeper.ended(trainer, signal=6)


def repair(cluster: SimCluster, node: Supervisor) -> None:
    """Mended, and brought back by the operator."""
    node.sick = ""
    node.lemon = False
    cluster.link.report(OPERATOR, NodeReadmitted(node=node.name, who="operator", why="repaired"))


def warning(cluster: SimCluster) -> None:
    if node := _up(cluster):
        action = cluster.rng.choice(("none", "watch", "restart_application"))
        severity = cluster.rng.choice(("info", "warning", "error"))
        node.find(
            Finding(check="thermal", cause="hot", severity=severity, action=action, sentence="GPU 2 is at 84 C", gpu=2)
        )


def lemon(cluster: SimCluster) -> None:
    """From now on trainers die there and probes find nothing."""
    if node := _up(cluster):
        node.lemon = True


def lose_node(cluster: SimCluster) -> None:
    if node := _up(cluster):
        node.lose()
        if cluster.rng.random() < 0.7:
            cluster.timeline.after(cluster.rng.randrange(S, 120 * S), node.boot)


def partition(cluster: SimCluster) -> None:
    """Cut off from Ray and the daemon: the supervisor ends its trainers within a second, and keeps its events."""
    if node := _up(cluster):
        node.partitioned = True
        cluster.link.cut(node.name)
        cluster.timeline.after(cluster.rng.randrange(200 * MS, S), node.end_all)
        cluster.timeline.after(cluster.rng.randrange(2 * S, 60 * S), _heal, cluster, node)


def _heal(cluster: SimCluster, node: Supervisor) -> None:
    node.partitioned = False
    cluster.link.connect_soon(node.name)


def broken_line(cluster: SimCluster) -> None:
    """The connection breaks and comes back; the node and its trainers are well all the time."""
    if node := _up(cluster):
        cluster.link.cut(node.name)
        cluster.link.connect_soon(node.name, within_ns=cluster.rng.choice((100 * MS, 600 * MS, 6 * S)))


# --- stores, checkpoints, slowness


def store_loss(cluster: SimCluster) -> None:
    held = [(node, run) for node in cluster.nodes.values() for run in node.stores]
    if held:
        node, run = cluster.rng.choice(held)
        node.lose_store(run)


def damaged_checkpoint(cluster: SimCluster) -> None:
    for truth in cluster.runs.values():
        truth.damaged.update(truth.checkpoints[-1:])


def slow_form(cluster: SimCluster) -> None:
    cluster.rng.choice(list(cluster.runs.values())).slow_forms += 1


def slow_restore(cluster: SimCluster) -> None:
    cluster.rng.choice(list(cluster.runs.values())).slow_restores += 1


# --- the daemon and the operator


def daemon_crash(cluster: SimCluster) -> None:
    point = cluster.rng.choice(("before_write", "after_write", "in_execute"))
    cluster.crash = CrashPlan(point=point, writes=cluster.rng.randrange(6), orders=cluster.rng.randrange(4))


def quarantine(cluster: SimCluster) -> None:
    node = cluster.rng.choice(list(cluster.nodes))
    cluster.link.report(OPERATOR, NodeQuarantined(node=node, who="operator", why="looks odd"))
    if cluster.rng.random() < 0.6:
        cluster.timeline.after(cluster.rng.randrange(5 * S, 90 * S), readmit, cluster, node)


def readmit(cluster: SimCluster, node: str = "") -> None:
    node = node or cluster.rng.choice(list(cluster.nodes))
    cluster.link.report(OPERATOR, NodeReadmitted(node=node, who="operator"))


def cancel(cluster: SimCluster) -> None:
    run = cluster.rng.choice(list(cluster.runs))
    cluster.link.report(OPERATOR, RunCancelled(run=run, who="operator", why="changed my mind"))


FAULTS: dict[str, tuple[float, Callable[[SimCluster], None]]] = {
    "crash": (5.0, crash),
    "injected_crash": (1.0, injected_crash),
    "worker_exception": (2.0, worker_exception),
    "hang": (2.0, hang),
    "short_hang": (1.0, short_hang),
    "fork_failure": (1.0, fork_failure),
    "xid": (3.0, xid),
    "warning": (1.0, warning),
    "lemon": (0.5, lemon),
    "lose_node": (2.0, lose_node),
    "partition": (1.0, partition),
    "broken_line": (2.0, broken_line),
    "store_loss": (1.5, store_loss),
    "damaged_checkpoint": (1.0, damaged_checkpoint),
    "slow_form": (0.5, slow_form),
    "slow_restore": (0.5, slow_restore),
    "daemon_crash": (4.0, daemon_crash),
    "quarantine": (0.7, quarantine),
    "readmit": (0.5, readmit),
    "cancel": (0.2, cancel),
}
