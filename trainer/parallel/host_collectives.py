"""FSDP2's collectives on the host, carried out so that the gang can interrupt them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from trainer.parallel.gang import Gang


def use_gang(module: FSDPModule, gang: Gang) -> None:
    """Let a module sharded over the gang's shard dimension gather and reduce through the gang.

    Gradients come out averaged over the whole world: over the shards by FSDP2, then over the replicas here.
    """
    module.set_custom_all_gather(_AllGather(gang))
    module.set_custom_reduce_scatter(_ReduceScatter(gang))
    if gang.layout.replicas > 1:
        module.set_all_reduce_hook(lambda reduced: _average(reduced, gang.mesh.get_group("replicate"), gang))


class _Collective:
    """FSDP2 takes any object with `allocate` and a call; a call without a result has waited."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Collective):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        self._gang.check()
        parts = list(output_tensor.chunk(group.size()))
        self._gang.wait(dist.all_gather(parts, input_tensor, group=group, async_op=True))


class _ReduceScatter(_Collective):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> None:
        """By way of an all-reduce, which is all that gloo's own does, but whose work can be waited for in slices.

        `op` is AVG, as FSDP2 reduces float32 without a factor, or SUM in a world of one.
        """
        _average(input_tensor, group, self._gang)
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


def _average(tensor: Tensor, group: dist.ProcessGroup, gang: Gang) -> None:
    gang.check()
    gang.wait(dist.all_reduce(tensor, group=group, async_op=True))
    tensor.div_(group.size())
