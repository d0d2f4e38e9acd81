"""A model wrapped by FSDP2 over a gang's mesh, with its local shards as plain tensors.

On GPUs the mesh is (replicate, shard), HSDP as FSDP2 has it: NCCL's abort frees a rank from its collectives. On the host,
FSDP2 gets the shard dimension alone, and the gang does the collectives, replication included, so that it can interrupt
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainer.parallel.gang import Gang
from trainer.parallel.host_collectives import use_gang


@dataclass(frozen=True)
class Piece:
    """Where a local shard lies: rows [offset, offset + rows) of a parameter of shape `shape`."""

    shape: tuple[int, ...]
    offset: int


class ShardedModel:
    """`module` is for the forward pass. `shards` are this rank's pieces of the parameters, by name.

    The shards are taken right after the wrapping and share its storage. After a failed collective the module may show
    unsharded parameters; the shards stay what they are, and outlive the mesh.
    """

    def __init__(self, build: Callable[[], nn.Module], gang: Gang) -> None:
        with torch.device("meta"):
            self.module = build()
        on_host = gang.device.type == "cpu"
        mesh = gang.mesh["shard"] if on_host else gang.mesh
        policy = _precision(gang.device)
        self._units = [*getattr(self.module, "sharding_units", self.module.blocks), self.module]
        self._alone = gang.layout.shards == 1
        # A lone shard has nobody to gather from: what is freed after the forward pass would be cast again.
        keep = {"reshard_after_forward": False} if self._alone else {}
        for module in self._units:
            fully_shard(module, mesh=mesh, mp_policy=policy, **keep)
            if on_host:
                use_gang(module, gang)
        self._on_host = on_host
        self.module.to_empty(device=gang.device)
        self._parameters = dict(self.module.named_parameters())
        self.shards: dict[str, Tensor] = {n: p.detach().to_local() for n, p in self._parameters.items()}

    @torch.no_grad()
    def fill(self, shards: dict[str, Tensor]) -> None:
        """Copy local shards of the same layout in."""
        for name, shard in self.shards.items():
            shard.copy_(shards[name])

    def accumulate(self, is_last: bool) -> None:
        """Prepare the next backward pass: its gradients are added to those before, and are reduced for good if `is_last`.

        In between, a lone shard and the host add up unsharded gradients and reduce nothing: float32, 4 bytes a parameter.
        Several shards on GPUs reduce-scatter each micro-batch, 4 bytes a parameter over all shards, for a whole model's
        gradients would not fit, and leave the replicas' all-reduce to the last.
        """
        root = self._units[-1]
        if self._alone or self._on_host:
            root.set_requires_gradient_sync(is_last)
        else:
            root.set_requires_all_reduce(is_last)
        if self._alone:
            root.set_reshard_after_backward(is_last)  # the weights don't change in between

    def gradients(self) -> dict[str, Tensor]:
        """Reduced local gradients of the last backward pass, detached from the module.

        On CUDA the current stream waits for their reductions, the host does not: whoever reads a value knows them done.
        """
        found = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                raise RuntimeError(f"{name} took no part in the loss")
            found[name] = parameter.grad.to_local()
            parameter.grad = None
        return found

    def drop_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def pieces(self) -> dict[str, Piece]:
        """FSDP cuts dimension 0 as torch.chunk does."""
        found = {}
        for name, parameter in self._parameters.items():
            mesh = parameter.device_mesh
            rows = -(-parameter.shape[0] // mesh.size(mesh.ndim - 1))
            offset = min(rows * mesh.get_coordinate()[-1], parameter.shape[0])
            found[name] = Piece(tuple(parameter.shape), offset)
        return found


def _precision(device: torch.device) -> MixedPrecisionPolicy:
    """The recipe's on GPUs: bfloat16 parameters, float32 reduction. float32 throughout on CPU."""
    if device.type == "cuda":
        # Inputs keep their dtypes: the rotary tables are float32.
        return MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy()
