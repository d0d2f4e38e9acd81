"""Carries a PeerPlan out: ballots to all, then shards from those that hold them to those that don't."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.outliers import WINDOW_FIELDS, Window
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.train.restore import PeerPlan
from trainer.train.state import COUNTER_FIELDS, Ballots, Memory, TrainState
from trainer.vote import BALLOT_FIELDS, Ballot

BUCKET_BYTES = 64 << 20


def share_ballots(plan: PeerPlan, memory: Memory, gang: Gang) -> None:
    """All ranks hold the ballots of the plan's step afterwards, and the window before it, when any did before."""
    if plan.ballots_from is None:
        return
    ballots = torch.zeros((gang.layout.world, BALLOT_FIELDS), dtype=torch.int64)
    window = torch.zeros(WINDOW_FIELDS, dtype=torch.int64)
    if gang.layout.rank == plan.ballots_from:
        ballots = torch.tensor([ballot.pack() for ballot in memory.ballots.ballots], dtype=torch.int64)
        window = torch.tensor(memory.ballots.window.pack(), dtype=torch.int64)
    gang.broadcast(ballots, plan.ballots_from)
    gang.broadcast(window, plan.ballots_from)
    unpacked = tuple(Ballot.unpack(fields) for fields in ballots.tolist())
    memory.ballots = Ballots(plan.step, unpacked, Window.unpack(window.tolist()))


def move_shards(plan: PeerPlan, memory: Memory, gang: Gang, fresh: Callable[[], TrainState]) -> None:
    """Weights, both moments and the counters, point to point. A receiver's state counts once it is whole."""
    rank = gang.layout.rank
    for giver, receiver in plan.transfers:
        if rank == giver:
            _give(memory.state, receiver, gang)
        elif rank == receiver:
            memory.state = _receive(fresh(), giver, gang)


def adopt(memory: Memory, model: ShardedModel) -> None:
    """Let the model hold the memory's weights, and the memory the model's tensors."""
    model.fill(memory.state.weights)
    memory.state.weights = model.shards


def zero_state(model: ShardedModel) -> TrainState:
    """The state around the model's present weights before the first step."""
    zeros = [{name: torch.zeros_like(shard) for name, shard in model.shards.items()} for _ in range(2)]
    return TrainState(step=0, updates=0, skipped=0, weights=model.shards, exp_avg=zeros[0], exp_avg_sq=zeros[1])


def _give(state: TrainState, receiver: int, gang: Gang) -> None:
    gang.send(torch.tensor(state.counters(), dtype=torch.int64), receiver)
    for bucket in _buckets(state):
        gang.send(torch.cat([tensor.reshape(-1) for tensor in bucket]), receiver)


def _receive(state: TrainState, giver: int, gang: Gang) -> TrainState:
    counters = gang.receive(torch.zeros(COUNTER_FIELDS, dtype=torch.int64), giver)
    for bucket in _buckets(state):
        flat = bucket[0].new_empty(sum(tensor.numel() for tensor in bucket))
        gang.receive(flat, giver)
        for tensor, piece in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(piece.view_as(tensor))
    state.set_counters(counters.tolist())
    return state


def _buckets(state: TrainState) -> list[list[Tensor]]:
    """The state's tensors in an order that all ranks share, grouped to about BUCKET_BYTES: a message costs a round trip."""
    buckets: list[list[Tensor]] = []
    room = 0
    for _, tensor in sorted(state.tensors().items()):
        if tensor.nbytes > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(tensor)
        room -= tensor.nbytes
    return buckets
