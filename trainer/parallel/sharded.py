"""A model wrapped by FSDP2 over a gang's mesh, with its local shards as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


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

    def __init__(self, build: Callable[[], nn.Module], mesh: DeviceMesh, device: torch.device) -> None:
        with torch.device("meta"):
            self.module = build()
        policy = _precision(device)
        for block in self.module.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.module, mesh=mesh, mp_policy=policy)
        self.module.to_empty(device=device)
        self._parameters = dict(self.module.named_parameters())
        self.shards: dict[str, Tensor] = {n: p.detach().to_local() for n, p in self._parameters.items()}

    @torch.no_grad()
    def fill(self, shards: dict[str, Tensor]) -> None:
        """Copy local shards of the same layout in."""
        for name, shard in self.shards.items():
            shard.copy_(shards[name])

    def gradients(self) -> dict[str, Tensor]:
        """Reduced local gradients of the last backward pass, detached from the module. Waits for their reductions."""
        if next(iter(self.shards.values())).is_cuda:
            torch.cuda.synchronize()
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
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()
