"""Tensors as rows of their last dimension, and the tiles in which the norms' kernels walk over them."""

from __future__ import annotations

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as [rows, D] with unit stride in D: a view where there is one, as for a slice of a wider projection."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def tile_shape(dim: int, elements: int) -> tuple[int, int]:
    """Rows and columns, both powers of two, of a tile of about `elements`: one row, or several if rows are short."""
    columns = 1 << (dim - 1).bit_length()
    return max(1, elements // columns), columns
