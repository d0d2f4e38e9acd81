"""The dtype that sums and exponentials are done in."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for float32 and below, float64 for float64, so that gradcheck sees the same code."""
    return torch.promote_types(dtype, torch.float32)
