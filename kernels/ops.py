"""The operations that models call, each sent to the implementation that suits the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.gated_rms_norm.reference import gated_rms_norm
from kernels.short_conv.shifted import short_convolution

__all__ = ["gated_delta_rule", "gated_rms_norm", "implementation_for", "short_convolution"]

Implementation = Literal["chunked"]


def implementation_for(device: torch.device) -> Implementation:
    """Name of the form of the gated delta rule that `gated_delta_rule` runs on `device`."""
    del device  # the chunked form is plain PyTorch and runs on all of them
    return "chunked"


_GATED_DELTA_RULE = {"chunked": chunk_gated_delta_rule}


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    normalize_qk: bool = False,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule; shapes, dtypes and errors as in `gated_delta_rule.reference.recurrent_gated_delta_rule`."""
    run = _GATED_DELTA_RULE[implementation_for(q.device)]
    return run(
        q, k, v, g, beta,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize_qk=normalize_qk, document_ids=document_ids,
    )  # fmt: skip
