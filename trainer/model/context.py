"""What the blocks of one forward pass share beside the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.documents import cumulative_lengths, segment_ids
from trainer.model.config import AttentionSpec, ModelSpec
from trainer.model.rope import rotary_tables


class Context(NamedTuple):
    """Positions and documents of the rows [B, T]; no gradient flows into it.

    document_ids: int64 [B, T], from 0, non-decreasing; None: each row is one document.
    cu_seqlens: int32 [N + 1], where documents begin in the flattened rows, for the kernels of variable lengths; None where
        those don't run. No empty documents: the deterministic backward pass of flash attention splits a document's keys
        among fewer programs the more documents there are (torch 2.11 on an H100: 21 ms for one of 8192 tokens beside 15
        empty ones).
    cos, sin: float32 [T, head_dim / 2], of the block's rotary embedding, if it has one.
    """

    document_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


def block_contexts(spec: ModelSpec, tokens: Tensor, document_ids: Tensor | None) -> list[Context]:
    """The context of each block for `tokens` [B, T] and `document_ids` integers [B, T].

    The ids may lie on the host though the tokens are on a GPU: then nothing waits for the GPU.
    """
    device, cu_seqlens = tokens.device, None
    if tokens.is_cuda:
        on_host = torch.zeros(tokens.shape, dtype=torch.int64) if document_ids is None else document_ids
        cu_seqlens = cumulative_lengths(on_host).to(device)
        torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)  # one graph for any number of documents
    ids = None if document_ids is None else segment_ids(document_ids).to(device)
    tables: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}
    contexts = []
    for block in spec.blocks:
        cos_sin: tuple[Tensor | None, Tensor | None] = (None, None)
        mixer = block[0].op
        if isinstance(mixer, AttentionSpec) and mixer.rope_theta is not None:
            key = (mixer.head_dim, mixer.rope_theta)
            if key not in tables:
                tables[key] = rotary_tables(tokens.shape[1], *key, device)
            cos_sin = tables[key]
        contexts.append(Context(ids, cu_seqlens, *cos_sin))
    return contexts
