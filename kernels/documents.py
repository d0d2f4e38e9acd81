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
