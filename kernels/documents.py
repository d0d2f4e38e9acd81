"""Packed documents: several of them in one row of tokens, none of which may see another."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(document_ids: Tensor) -> Tensor:
    """Number the documents of each row in order: int64 [B, T], from 0, one more wherever `document_ids` changes.

    A document may carry any id, and an id that comes back later in the row is a new document. Idempotent.
    """
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.nn.functional.pad(changes.long().cumsum(dim=1), (1, 0))


def cumulative_lengths(document_ids: Tensor) -> Tensor:
    """Where the documents of all rows begin when the rows lie one after the other: int32 [N + 1], the last is B * T.

    A row's start is a document's start. Waits for the device of `document_ids`: make it on the host.
    """
    rows, length = document_ids.shape
    starts = torch.ones(rows, length, dtype=torch.bool, device=document_ids.device)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begins = starts.flatten().nonzero().squeeze(1)
    return torch.nn.functional.pad(begins, (0, 1), value=rows * length).int()
