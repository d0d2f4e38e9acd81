"""How a model's blocks are run: compiled or not, with activations kept or made again. Neither changes what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CompileMode = Literal["auto", "always", "never"]  # on and off are booleans in YAML
Recomputation = Literal["none", "mlp", "block"]
_GRAPHS_LIMIT = (
    64  # kinds of block x with and without gradients x shapes; dynamo's own limit is 8, for all kinds together
)


@dataclass(frozen=True)
class Execution:
    """`compile` auto: on CUDA. `activation_checkpointing`: what is computed again in the backward pass.

    mlp: the feed-forward networks, whose activations are the widest. block: whole blocks, of which only inputs are kept.
    """

    compile: CompileMode = "auto"
    activation_checkpointing: Recomputation = "none"

    def compiles(self, x: Tensor) -> bool:
        return self.compile == "always" or (self.compile == "auto" and x.is_cuda)


def recomputed(function: Callable[..., Tensor], *args: object) -> Tensor:
    """`function(*args)`, whose activations are computed again in the backward pass. There is no randomness to restore."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, one graph.

    Compiled code hangs on the function, not on a module: blocks of one kind share it, and so do the models of later
    attempts of this process, which then compile nothing. Inductor may measure on the device which of several kernels to
    take; where that could change bits, another process would get others: `deterministic` forbids it. Shapes are static
    but for what is marked dynamic.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.recompile_limit = max(dynamo.recompile_limit, _GRAPHS_LIMIT)
    inductor.deterministic = True
    return torch.compile(function, fullgraph=True, dynamic=False)
