"""What one seed simulates: the cluster, its runs, the policy, and how rough the world is. Drawn from the seed alone."""

from __future__ import annotations

import random

import msgspec

from orchestrator.recovery.events import RunPlan
from orchestrator.recovery.policy import Policy
from orchestrator.simulator.timeline import MS, S


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A run to submit `submit_ns` after the start; a checkpoint is due each `interval` steps."""

    run: str
    plan: RunPlan
    submit_ns: int
    steps: int
    step_ns: int
    interval: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Shares are probabilities for each event or command concerned."""

    seed: int
    nodes: tuple[str, ...]
    jobs: tuple[Job, ...]
    policy: Policy
    faults: int
    horizon_ns: int  # no fault begins later
    duplicate_share: float
    late_share: float  # an event overtaken by later ones of the same node
    vote_share: float  # a disturbance falls between the first and the last rank's vote
    node_loss_ns: int  # from a broken connection to the verdict
    hang_ns: int  # from a stall to the verdict
    says_unreachable: bool  # an order to a node without connection comes back as CommandFailed, else it is lost
    connects_first: bool  # after a daemon's restart nodes connect before it speaks
    restart_over_ns: int  # longest time without a daemon


LAYOUTS = {
    1: ((1, 1),),
    2: ((2, 1), (1, 2)),
    3: ((3, 1),),
    4: ((2, 2), (4, 1), (1, 4)),
    6: ((3, 2),),
    8: ((2, 4), (4, 2)),
}


def draw_shape(seed: int, rng: random.Random) -> Shape:
    """Four to six nodes, one to three runs, up to 32 faults: small worlds meet the races of large ones."""
    nodes = tuple(f"n{i}" for i in range(rng.choice((4, 5, 5, 6))))
    count = rng.choice((1, 1, 1, 2, 2, 3))
    horizon_ns = rng.randrange(40, 240) * S
    return Shape(
        seed=seed,
        nodes=nodes,
        jobs=tuple(_draw_job(rng, i, len(nodes), horizon_ns) for i in range(count)),
        policy=_draw_policy(rng),
        faults=rng.choice((0, 2, 4, 6, 8, 12, 16, 24, 32)),
        horizon_ns=horizon_ns,
        duplicate_share=rng.choice((0.0, 0.02, 0.1)),
        late_share=rng.choice((0.0, 0.0, 0.02, 0.05)),
        vote_share=rng.choice((0.0, 0.3, 0.8)),
        node_loss_ns=rng.randrange(200, 3000) * MS,
        hang_ns=rng.randrange(800, 4000) * MS,
        says_unreachable=rng.random() < 0.5,
        connects_first=rng.random() < 0.5,
        restart_over_ns=rng.choice((1, 5, 40)) * S,
    )


def _draw_job(rng: random.Random, index: int, nodes: int, horizon_ns: int) -> Job:
    count = rng.choice((2, 2, 3, 4, 4)) if nodes > 4 else rng.choice((2, 3, 3, 4))
    per_node = rng.choice((1, 1, 1, 2))
    replicas, shards = rng.choice(LAYOUTS[count * per_node])
    step_ns = rng.randrange(200, 3000) * MS
    plan = RunPlan(
        nodes=count, ranks_per_node=per_node, replicas=replicas, shards=shards, priority=rng.choice((0, 0, 1)),
        speaks_protocol=rng.random() < 0.9, max_recoveries=rng.choice((3, 100, 100, 100)),
    )  # fmt: skip
    steps = max(5, int(horizon_ns * rng.uniform(0.5, 2.0)) // step_ns)
    submit_ns = rng.choice((0, 0, rng.randrange(horizon_ns)))
    return Job(
        run=f"run-{index}",
        plan=plan,
        submit_ns=submit_ns,
        steps=steps,
        step_ns=step_ns,
        interval=rng.choice((3, 10, 50)),
    )


def _draw_policy(rng: random.Random) -> Policy:
    return Policy(
        preflight=rng.random() < 0.8,
        max_recoveries_without_progress=rng.choice((2, 5, 5, 50)),
        node_failures_to_quarantine=rng.choice((2, 3, 3)),
        backoff_base_s=rng.choice((0.0, 0.5, 0.5)),
        backoff_max_s=rng.choice((2.0, 60.0)),
        max_quarantined_share=rng.choice((0.3, 0.5, 1.0)),
    )
