"""The kernel for the gradients that need no scan: dq, dk, dg, dbeta from each chunk's states and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gated_delta_rule.chunk_kernel import (
    CUMULATIVE,
    FACTORS,
    FROM_START,
    FROM_START_K,
    FROM_START_Q,
    INVERSE_NORM_K,
    INVERSE_NORM_Q,
    TO_END,
)
from kernels.gated_delta_rule.tiles import (
    CHUNK,
    load_rows,
    load_state,
    load_values,
    locate_chunk,
    pairwise_decay,
    store_rows,
)


@triton.jit
def through_norm(x1, x2, dy1, dy2, norm, NORMALIZE: tl.constexpr):
    """Gradient of x from that of y = norm x: norm (dy - y (y . dy)), in both column blocks."""
    if NORMALIZE:
        along = norm * norm * (tl.sum(x1 * dy1, axis=1) + tl.sum(x2 * dy2, axis=1))
        dx1 = norm[:, None] * (dy1 - x1 * along[:, None])
        dx2 = norm[:, None] * (dy2 - x2 * along[:, None])
    else:
        dx1 = dy1
        dx2 = dy2
    return dx1, dx2


@triton.jit
def sum_of_vector(x, BLACKWELL: tl.constexpr):
    """Of [64]. Triton 3.6 and 3.7 for sm_100 fail on a plain sum whose layout comes from tensor memory."""
    return tl.sum(tl.reshape(x, (8, 8))) if BLACKWELL else tl.sum(x, axis=0)


@triton.jit(do_not_specialize=["length", "chunks_per_row"])
def chunk_gradients(
    q, k, beta, document_ids, out_gradient, v_gradient, corrections, states, state_gradients, factors, chunk_decay,
    chunk_rows, chunk_offsets, cu_seqlens, q_gradient, k_gradient, g_gradient, beta_gradient,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h,
    length, chunks_per_row, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    V: tl.constexpr, BV: tl.constexpr,
    NORMALIZE: tl.constexpr, PACKED: tl.constexpr, VARLEN: tl.constexpr, PRECISION: tl.constexpr,
    BLACKWELL: tl.constexpr,
):  # fmt: skip
    """One program a (chunk, value head). dq and dk are those of each value head; their sum over a group is the caller's.

    With M = -strict_tril(dX Z^T) and L = tril(dO Z^T), each times e^{G_i - G_j} beta_j:
    dQ = e^G dO S^T + L K;  dK = -e^G dX S^T + beta e^{G_C - G} Z dS^T + L^T Q + (M + M^T) K.
    """
    program = tl.program_id(0)
    chunk, head = program // HEADS, program % HEADS
    batch, first, end = locate_chunk(chunk, chunk_rows, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN)
    tokens = tl.arange(0, CHUNK)
    valid = first + tokens < end
    dtype = q.dtype.element_ty
    plane = (batch * length + first) * HEADS + head
    state = program.to(tl.int64) * K * V

    do_s1 = tl.zeros((CHUNK, K1), tl.float32)
    do_s2 = tl.zeros((CHUNK, K2), tl.float32)
    dx_s1 = tl.zeros((CHUNK, K1), tl.float32)
    dx_s2 = tl.zeros((CHUNK, K2), tl.float32)
    z_ds1 = tl.zeros((CHUNK, K1), tl.float32)
    z_ds2 = tl.zeros((CHUNK, K2), tl.float32)
    do_z = tl.zeros((CHUNK, CHUNK), tl.float32)
    dx_z = tl.zeros((CHUNK, CHUNK), tl.float32)
    overlap1 = tl.zeros((BV, K1), tl.float32)
    overlap2 = tl.zeros((BV, K2), tl.float32)
    for first_v in range(0, V, BV):
        do = load_values(out_gradient + plane * V, HEADS * V, tokens, valid, first_v, BV, V)
        dx = load_values(v_gradient + plane * V, HEADS * V, tokens, valid, first_v, BV, V)
        z = load_values(corrections + plane * V, HEADS * V, tokens, valid, first_v, BV, V)
        s1 = load_state(states + state, K, 1, first_v, BV, V, 0, K1, K)
        s2 = load_state(states + state, K, 1, first_v, BV, V, K1, K2, K)
        ds1 = load_state(state_gradients + state, K, 1, first_v, BV, V, 0, K1, K)
        ds2 = load_state(state_gradients + state, K, 1, first_v, BV, V, K1, K2, K)
        overlap1 += s1.to(tl.float32) * ds1.to(tl.float32)
        overlap2 += s2.to(tl.float32) * ds2.to(tl.float32)
        do_s1 = tl.dot(do, s1, do_s1, input_precision=PRECISION)
        do_s2 = tl.dot(do, s2, do_s2, input_precision=PRECISION)
        dx_s1 = tl.dot(dx, s1, dx_s1, input_precision=PRECISION)
        dx_s2 = tl.dot(dx, s2, dx_s2, input_precision=PRECISION)
        z_ds1 = tl.dot(z, ds1, z_ds1, input_precision=PRECISION)
        z_ds2 = tl.dot(z, ds2, z_ds2, input_precision=PRECISION)
        do_z = tl.dot(do, tl.trans(z), do_z, input_precision=PRECISION)
        dx_z = tl.dot(dx, tl.trans(z), dx_z, input_precision=PRECISION)
    overlap = tl.sum(tl.sum(overlap1, axis=1), axis=0) + tl.sum(tl.sum(overlap2, axis=1), axis=0)

    q_base = q + batch * q_stride_b + first * q_stride_t + (head // GROUP) * q_stride_h
    k_base = k + batch * k_stride_b + first * k_stride_t + (head // GROUP) * k_stride_h
    k1 = load_rows(k_base, k_stride_t, tokens, valid, 0, K1, K)
    k2 = load_rows(k_base, k_stride_t, tokens, valid, K1, K2, K)
    q1 = load_rows(q_base, q_stride_t, tokens, valid, 0, K1, K)
    q2 = load_rows(q_base, q_stride_t, tokens, valid, K1, K2, K)
    row = factors + program.to(tl.int64) * FACTORS * CHUNK + tokens
    cumulative = tl.load(row + CUMULATIVE * CHUNK)
    norm_k = tl.load(row + INVERSE_NORM_K * CHUNK)
    norm_q = tl.load(row + INVERSE_NORM_Q * CHUNK)
    strength = tl.load(beta + plane + tokens * HEADS, mask=valid, other=0.0).to(tl.float32)
    ids = tokens
    if PACKED:
        ids = tl.load(document_ids + batch * length + first + tokens, mask=valid, other=-1)
    decay = pairwise_decay(cumulative, valid, ids, True, PACKED)
    do_z = do_z * decay
    dx_z = tl.where(tokens[:, None] > tokens[None, :], dx_z * decay, 0.0)
    qk = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1), input_precision=PRECISION), input_precision=PRECISION)
    kk = tl.dot(k2, tl.trans(k2), tl.dot(k1, tl.trans(k1), input_precision=PRECISION), input_precision=PRECISION)
    per_strength = (do_z * qk * (norm_q * scale)[:, None] - dx_z * kk * norm_k[:, None]) * norm_k[None, :]
    d_beta = tl.sum(per_strength, axis=0)
    pairs = per_strength * strength[None, :]
    d_cumulative = tl.sum(pairs, axis=1) - d_beta * strength

    read_k = (do_z * (strength * norm_k)[None, :]).to(dtype)
    read_q = (do_z * (norm_q * scale)[:, None] * strength[None, :]).to(dtype)
    recall_j = (-dx_z * (strength * norm_k)[None, :]).to(dtype)
    recall_i = (-dx_z * norm_k[:, None] * strength[None, :]).to(dtype)

    q1_wide, q2_wide, k1_wide, k2_wide = q1.to(tl.float32), q2.to(tl.float32), k1.to(tl.float32), k2.to(tl.float32)
    from_start = tl.load(row + FROM_START * CHUNK)
    from_state = tl.load(row + FROM_START_Q * CHUNK) * (tl.sum(q1_wide * do_s1, 1) + tl.sum(q2_wide * do_s2, 1))
    dq1 = scale * tl.dot(read_k, k1, do_s1 * from_start[:, None], input_precision=PRECISION)
    dq2 = scale * tl.dot(read_k, k2, do_s2 * from_start[:, None], input_precision=PRECISION)
    dq1, dq2 = through_norm(q1_wide, q2_wide, dq1, dq2, norm_q, NORMALIZE)
    q_out = q_gradient + plane * K
    store_rows(q_out, HEADS * K, tokens, valid, dq1, 0, K1, K)
    store_rows(q_out, HEADS * K, tokens, valid, dq2, K1, K2, K)

    from_state -= tl.load(row + FROM_START_K * CHUNK) * (tl.sum(k1_wide * dx_s1, 1) + tl.sum(k2_wide * dx_s2, 1))
    to_end = tl.load(row + TO_END * CHUNK)
    to_state = norm_k * to_end * (tl.sum(k1_wide * z_ds1, 1) + tl.sum(k2_wide * z_ds2, 1))
    d_beta += to_state
    to_state = to_state * strength
    to_end_k = (strength * to_end)[:, None]
    dk1 = z_ds1 * to_end_k - dx_s1 * from_start[:, None]
    dk2 = z_ds2 * to_end_k - dx_s2 * from_start[:, None]
    dk1 = tl.dot(tl.trans(read_q), q1, dk1, input_precision=PRECISION)
    dk2 = tl.dot(tl.trans(read_q), q2, dk2, input_precision=PRECISION)
    dk1 = tl.dot(recall_j, k1, dk1, input_precision=PRECISION)
    dk2 = tl.dot(recall_j, k2, dk2, input_precision=PRECISION)
    dk1 = tl.dot(tl.trans(recall_i), k1, dk1, input_precision=PRECISION)
    dk2 = tl.dot(tl.trans(recall_i), k2, dk2, input_precision=PRECISION)
    dk1, dk2 = through_norm(k1_wide, k2_wide, dk1, dk2, norm_k, NORMALIZE)
    k_out = k_gradient + plane * K
    store_rows(k_out, HEADS * K, tokens, valid, dk1, 0, K1, K)
    store_rows(k_out, HEADS * K, tokens, valid, dk2, K1, K2, K)

    d_cumulative += from_state - to_state
    at_end = tl.load(chunk_decay + program) * overlap + sum_of_vector(to_state, BLACKWELL)
    d_g = tl.cumsum(d_cumulative, axis=0, reverse=True) + at_end
    tl.store(g_gradient + plane + tokens * HEADS, d_g, mask=valid)
    tl.store(beta_gradient + plane + tokens * HEADS, d_beta.to(beta_gradient.dtype.element_ty), mask=valid)
