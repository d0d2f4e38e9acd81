"""Documents given by offsets, for the forms that know a row of tokens only."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.gated_delta_rule.inputs import check_shapes


def document_by_document(
    rule: Callable[..., tuple[Tensor, Tensor | None]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor,
    *,
    initial_state: Tensor | None,
    output_final_state: bool,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    """Run `rule` on each document of the one row; N documents of `cu_seqlens` [N + 1].

    `initial_state` and the state returned are [N, H, K, V]. A document without tokens hands on its initial state. Reads
    the offsets on the host.
    """
    check_shapes(q, k, v, g, beta, initial_state, None, cu_seqlens)
    ends = cu_seqlens.tolist()
    outputs, states = [], []
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        state = None if initial_state is None else initial_state[n : n + 1]
        if start < end:
            tokens = (x[:, start:end] for x in (q, k, v, g, beta))
            out, state = rule(*tokens, initial_state=state, output_final_state=output_final_state, **options)
            outputs.append(out)
        states.append(v.new_zeros(1, v.shape[2], q.shape[-1], v.shape[-1]) if state is None else state)
    if not output_final_state:
        return torch.cat(outputs, dim=1), None
    return torch.cat(outputs, dim=1), torch.cat(
        [state.to(torch.promote_types(v.dtype, torch.float32)) for state in states]
    )
