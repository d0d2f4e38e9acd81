"""Which pinned launch configurations a device runs.

Configurations are pinned, never autotuned in a run, so that a restart cannot change a kernel and with it the bits of a
training run. An operation's table has a row for each name here.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

import torch
from torch import Tensor

Architecture = Literal["sm_80", "sm_90", "sm_100"]
HAS_TRITON = importlib.util.find_spec("triton") is not None


def architecture_of(device: torch.device) -> Architecture:
    """The row for `device`: the newest one that is not newer than its compute capability.

    Triton's interpreter, which runs on the CPU, takes sm_90's, the measured ones.
    """
    return "sm_90" if device.type == "cpu" else _of_cuda(device.index or 0)


@functools.cache
def _of_cuda(index: int) -> Architecture:
    major, _ = torch.cuda.get_device_capability(index)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


def runs_triton(x: Tensor) -> bool:
    """Whether operations on `x` go to Triton: on CUDA, but for float64, which the kernels would round to float32."""
    return x.is_cuda and HAS_TRITON and x.dtype != torch.float64
