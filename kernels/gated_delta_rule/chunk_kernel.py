"""The kernel for what a chunk needs no state for: norms, decays, the inverse, and attention inside the chunk."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gated_delta_rule.tiles import CHUNK, load_rows, locate_chunk, pairwise_decay

# Rows of the float32 `factors` [chunks, H, FACTORS, 64]; all are 0 at positions without a token.
FROM_START_K = tl.constexpr(0)  # e^{G_i} / |k_i|, 0 when the state before the chunk is of another document
TO_END_K = tl.constexpr(1)  # beta_i e^{G_C - G_i} / |k_i|, 0 when the state after the chunk is of another document
FROM_START_Q = tl.constexpr(2)  # scale e^{G_i} / |q_i|
CUMULATIVE = tl.constexpr(3)  # G_i
INVERSE_NORM_K = tl.constexpr(4)  # 1 / |k_i|, or 1 without normalisation
INVERSE_NORM_Q = tl.constexpr(5)
FROM_START = tl.constexpr(6)  # e^{G_i}
TO_END = tl.constexpr(7)  # e^{G_C - G_i}
FACTORS = tl.constexpr(8)

# e^-104 is 0 in float32. A gate below it changes nothing, but would spend the digits of the sums it enters.
LEAST_LOG_DECAY = tl.constexpr(-104.0)


@triton.jit
def inverse_norm(x1, x2, valid, EPS: tl.constexpr, NORMALIZE: tl.constexpr):
    if NORMALIZE:
        x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
        norm = tl.rsqrt(tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1) + EPS)
    else:
        norm = 1.0
    return tl.where(valid, norm, 0.0)


@triton.jit
def invert_unit_lower(a, PRECISION: tl.constexpr):
    """(I + a)^-1 for a strictly lower [64, 64].

    Forward substitution in the four diagonal blocks of 16 at once, then two levels of
    [[X, 0], [B, Y]]^-1 = [[X^-1, 0], [-Y^-1 B X^-1, Y^-1]], each exact. A series in powers of `a` would be fewer steps,
    but parallel keys with beta 2 make its terms grow until float32 cancels.
    """
    block = tl.arange(0, 4)
    row = tl.arange(0, 16)
    own = block[:, None, None, None] == block[None, None, :, None]
    diagonal = tl.sum(tl.where(own, tl.reshape(a, (4, 16, 4, 16)), 0.0), axis=2)
    solved = tl.where(row[:, None] == row[None, :], 1.0, 0.0)[None, :, :] - diagonal
    for n in range(2, 16):
        coefficients = tl.sum(tl.where((row == n)[None, :, None], diagonal, 0.0), axis=1)
        new = tl.where(row == n, 1.0, 0.0)[None, :] - tl.sum(coefficients[:, :, None] * solved, axis=1)
        solved = tl.where((row == n)[None, :, None], new[:, None, :], solved)
    x = tl.reshape(tl.where(own, solved[:, :, None, :], 0.0), (CHUNK, CHUNK))
    i = tl.arange(0, CHUNK)
    same_half = (i // 32)[:, None] == (i // 32)[None, :]
    inner = tl.where(same_half & ((i // 16)[:, None] > (i // 16)[None, :]), a, 0.0)
    x -= tl.dot(tl.dot(x, inner, input_precision=PRECISION), x, input_precision=PRECISION)
    outer = tl.where((i // 32)[:, None] > (i // 32)[None, :], a, 0.0)
    return x - tl.dot(tl.dot(x, outer, input_precision=PRECISION), x, input_precision=PRECISION)


@triton.jit
def document_masks(document_ids, batch, start, length, tokens, valid, PACKED: tl.constexpr):
    """Ids in the chunk; whether each token is of the document before it, and of its last one; 1 if these are one."""
    if PACKED:
        row = document_ids + batch * length
        ids = tl.load(row + start + tokens, mask=valid, other=-1)
        before = tl.load(row + tl.maximum(start - 1, 0))
        last = tl.load(row + tl.minimum(start + CHUNK, length) - 1)
        of_before = valid & (ids == before)
        of_last = valid & (ids == last)
        survival = tl.where(before == last, 1.0, 0.0)
    else:
        ids = tokens
        of_before = valid
        of_last = valid
        survival = 1.0
    return ids, of_before, of_last, survival


@triton.jit(do_not_specialize=["length", "chunks_per_row"])
def intra_chunk(
    q, k, g, beta, document_ids, chunk_rows, chunk_offsets, cu_seqlens,
    inverse, attention, factors, chunk_decay,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h,
    length, chunks_per_row, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    EPS: tl.constexpr, NORMALIZE: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr,
    PRECISION: tl.constexpr, SOLVE_PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a (chunk, value head). Writes the inverse, the attention, the factors and the chunk's decay."""
    program = tl.program_id(0)
    chunk, head = program // HEADS, program % HEADS
    batch, first, end = locate_chunk(chunk, chunk_rows, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN)
    tokens = tl.arange(0, CHUNK)
    valid = first + tokens < end
    q_base = q + batch * q_stride_b + first * q_stride_t + (head // GROUP) * q_stride_h
    k_base = k + batch * k_stride_b + first * k_stride_t + (head // GROUP) * k_stride_h
    k1 = load_rows(k_base, k_stride_t, tokens, valid, 0, K1, K)
    k2 = load_rows(k_base, k_stride_t, tokens, valid, K1, K2, K)
    q1 = load_rows(q_base, q_stride_t, tokens, valid, 0, K1, K)
    q2 = load_rows(q_base, q_stride_t, tokens, valid, K1, K2, K)
    gate_row = (batch * length + first) * HEADS + head
    log_decay = tl.load(g + gate_row + tokens * HEADS, mask=valid, other=0.0).to(tl.float32)
    strength = tl.load(beta + gate_row + tokens * HEADS, mask=valid, other=0.0).to(tl.float32)
    cumulative = tl.cumsum(tl.maximum(log_decay, LEAST_LOG_DECAY), axis=0)
    whole = tl.sum(tl.where(tokens == CHUNK - 1, cumulative, 0.0), axis=0)
    ids, of_before, of_last, survival = document_masks(document_ids, batch, first, length, tokens, valid, PACKED)

    norm_k = inverse_norm(k1, k2, valid, EPS, NORMALIZE)
    norm_q = inverse_norm(q1, q2, valid, EPS, NORMALIZE)
    decay = pairwise_decay(cumulative, valid, ids, True, PACKED)
    pair = decay * (norm_k * strength)[None, :]
    tile = program.to(tl.int64) * CHUNK * CHUNK + tokens[:, None] * CHUNK + tokens[None, :]
    qk = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1), input_precision=PRECISION), input_precision=PRECISION)
    tl.store(attention + tile, (qk * pair * (norm_q * scale)[:, None]).to(attention.dtype.element_ty))
    kk = tl.dot(k2, tl.trans(k2), tl.dot(k1, tl.trans(k1), input_precision=PRECISION), input_precision=PRECISION)
    strictly_lower = tokens[:, None] > tokens[None, :]
    a = tl.where(strictly_lower, kk * pair * norm_k[:, None], 0.0)

    from_start = tl.exp(tl.where(of_before, cumulative, float("-inf")))
    to_end = tl.exp(tl.where(of_last, whole - cumulative, float("-inf")))
    row = factors + program.to(tl.int64) * FACTORS * CHUNK + tokens
    tl.store(row + FROM_START_K * CHUNK, from_start * norm_k)
    tl.store(row + TO_END_K * CHUNK, to_end * norm_k * strength)
    tl.store(row + FROM_START_Q * CHUNK, from_start * norm_q * scale)
    tl.store(row + CUMULATIVE * CHUNK, cumulative)
    tl.store(row + INVERSE_NORM_K * CHUNK, norm_k)
    tl.store(row + INVERSE_NORM_Q * CHUNK, norm_q)
    tl.store(row + FROM_START * CHUNK, from_start)
    tl.store(row + TO_END * CHUNK, to_end)
    tl.store(chunk_decay + program, survival * tl.exp(whole))
    tl.store(inverse + tile, invert_unit_lower(a, SOLVE_PRECISION).to(inverse.dtype.element_ty))
