"""Pieces that the Triton kernels of the gated delta rule share: tiles in two column blocks, chunk addresses, masks.

Tiles of K columns are held as two blocks of powers of two, K = 96 as 64 + 32, so that nothing is padded to 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(64)


@triton.jit
def locate_chunk(chunk, chunk_rows, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN: tl.constexpr):
    """Batch index, first token, and end of the sequence.

    With documents, chunks start at their beginnings; a chunk beyond the last document has no valid token.
    """
    if VARLEN:
        document = tl.load(chunk_rows + chunk)
        nth = chunk - tl.load(chunk_offsets + document)
        batch = 0
        start = tl.load(cu_seqlens + document) + nth * CHUNK
        end = tl.load(cu_seqlens + document + 1)
    else:
        batch = chunk // chunks_per_row
        start = (chunk % chunks_per_row) * CHUNK
        end = length
    return tl.cast(batch, tl.int64), tl.cast(start, tl.int64), end


@triton.jit
def locate_row(row, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN: tl.constexpr):
    """Of a sequence: batch index, first token, length, first chunk, number of chunks."""
    if VARLEN:
        batch = 0
        start = tl.load(cu_seqlens + row)
        size = tl.load(cu_seqlens + row + 1) - start
        first_chunk = tl.load(chunk_offsets + row)
        chunks = tl.load(chunk_offsets + row + 1) - first_chunk
    else:
        batch = row
        start = 0
        size = length
        first_chunk = row * chunks_per_row
        chunks = chunks_per_row
    return tl.cast(batch, tl.int64), tl.cast(start, tl.int64), size, tl.cast(first_chunk, tl.int64), chunks


@triton.jit
def load_rows(base, stride, rows, valid, FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Columns FIRST to FIRST + BLOCK of the rows that are valid; zero elsewhere."""
    columns = FIRST + tl.arange(0, BLOCK)
    mask = valid[:, None]
    if FIRST + BLOCK > DIM:
        mask = mask & (columns < DIM)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, stride, rows, valid, x, FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """The converse of `load_rows`, in the dtype of the destination."""
    columns = FIRST + tl.arange(0, BLOCK)
    mask = valid[:, None]
    if FIRST + BLOCK > DIM:
        mask = mask & (columns < DIM)[None, :]
    tl.store(base + rows[:, None] * stride + columns[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_values(base, stride, rows, valid, first, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """[rows, BLOCK] of the columns from `first` on, which may be known at run time only."""
    columns = first + tl.arange(0, BLOCK)
    mask = valid[:, None]
    if DIM % BLOCK != 0:
        mask = mask & (columns < DIM)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_columns(base, stride, rows, valid, first, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """`load_values` transposed: [BLOCK, rows]."""
    columns = first + tl.arange(0, BLOCK)
    mask = valid[None, :]
    if DIM % BLOCK != 0:
        mask = mask & (columns < DIM)[:, None]
    return tl.load(base + rows[None, :] * stride + columns[:, None], mask=mask, other=0.0)


@triton.jit
def store_columns(base, stride, rows, valid, x, first, BLOCK: tl.constexpr, DIM: tl.constexpr):
    columns = first + tl.arange(0, BLOCK)
    mask = valid[None, :]
    if DIM % BLOCK != 0:
        mask = mask & (columns < DIM)[:, None]
    tl.store(base + rows[None, :] * stride + columns[:, None], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_state(base, row_stride, column_stride, first, BV: tl.constexpr, V: tl.constexpr,
               FIRST: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):  # fmt: skip
    """A [BV, BLOCK] block of a transposed state, rows along V and columns along K."""
    rows = first + tl.arange(0, BV)
    columns = FIRST + tl.arange(0, BLOCK)
    mask = (rows < V)[:, None] & (columns < K)[None, :]
    return tl.load(base + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def store_state(base, row_stride, column_stride, x, first, BV: tl.constexpr, V: tl.constexpr,
                FIRST: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):  # fmt: skip
    rows = first + tl.arange(0, BV)
    columns = FIRST + tl.arange(0, BLOCK)
    mask = (rows < V)[:, None] & (columns < K)[None, :]
    pointers = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def pairwise_decay(cumulative, valid, documents, INCLUSIVE: tl.constexpr, PACKED: tl.constexpr):
    """e^{G_i - G_j} for j before i (or at i) in the same document, else 0; masked before the exponential."""
    i = tl.arange(0, CHUNK)
    keep = (i[:, None] >= i[None, :]) if INCLUSIVE else (i[:, None] > i[None, :])
    keep = keep & valid[:, None] & valid[None, :]
    if PACKED:
        keep = keep & (documents[:, None] == documents[None, :])
    return tl.exp(tl.where(keep, cumulative[:, None] - cumulative[None, :], float("-inf")))
