"""The two scans over chunks: the state forward, its gradient backward. One program a (row, value head, block of V).

The state is held transposed, [V, K], in registers. Then each product of a step has the state, or what was just computed
from it, on the left: the tensor cores read that side from registers, and only tiles that come from memory pass through
shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gated_delta_rule.chunk_kernel import FACTORS, FROM_START_K, FROM_START_Q, TO_END_K
from kernels.gated_delta_rule.tiles import (
    CHUNK,
    load_columns,
    load_rows,
    load_state,
    locate_row,
    store_columns,
    store_state,
)


@triton.jit(do_not_specialize=["length", "chunks_per_row"])
def scan_states(
    q, k, v, inverse, attention, factors, chunk_decay, initial_state, chunk_offsets, cu_seqlens,
    out, corrections, states, final_state,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    length, chunks_per_row,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    V: tl.constexpr, BV: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr,
    FOR_BACKWARD: tl.constexpr, VARLEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the output and the final state; for the backward pass, instead, each chunk's first state and corrections.

    Per chunk: X = V - e^G K S;  Z = T X;  O = e^G Q S + P Z;  S <- e^{G_C} S + (beta e^{G_C - G} K)^T Z.
    """
    first_v = tl.program_id(0) * BV
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    batch, start, size, first_chunk, chunks = locate_row(row, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN)
    dtype = v.dtype.element_ty
    tokens = tl.arange(0, CHUNK)
    q_base = q + batch * q_stride_b + start * q_stride_t + (head // GROUP) * q_stride_h
    k_base = k + batch * k_stride_b + start * k_stride_t + (head // GROUP) * k_stride_h
    v_base = v + batch * v_stride_b + start * v_stride_t + head * v_stride_h
    plane = ((batch * length + start) * HEADS + head) * V
    boundary_state = (row * HEADS + head).to(tl.int64) * K * V
    if HAS_INITIAL:
        s1 = load_state(initial_state + boundary_state, 1, V, first_v, BV, V, 0, K1, K).to(tl.float32)
        s2 = load_state(initial_state + boundary_state, 1, V, first_v, BV, V, K1, K2, K).to(tl.float32)
    else:
        s1 = tl.zeros((BV, K1), tl.float32)
        s2 = tl.zeros((BV, K2), tl.float32)
    for n in range(chunks):
        index = (first_chunk + n) * HEADS + head
        rows = n * CHUNK + tokens
        valid = rows < size
        rows = rows.to(tl.int64)
        tile = index * CHUNK * CHUNK + tokens[:, None] * CHUNK + tokens[None, :]
        vector = factors + index * FACTORS * CHUNK + tokens
        k1 = load_rows(k_base, k_stride_t, rows, valid, 0, K1, K)
        k2 = load_rows(k_base, k_stride_t, rows, valid, K1, K2, K)
        from_start_k = tl.load(vector + FROM_START_K * CHUNK)
        to_end_k = tl.load(vector + TO_END_K * CHUNK)
        s1_low, s2_low = s1.to(dtype), s2.to(dtype)
        recalled = tl.dot(s1_low, tl.trans(k1), input_precision=PRECISION)
        recalled = tl.dot(s2_low, tl.trans(k2), recalled, input_precision=PRECISION)
        x = load_columns(v_base, v_stride_t, rows, valid, first_v, BV, V) - recalled * from_start_k[None, :]
        z = tl.dot(x.to(dtype), tl.trans(tl.load(inverse + tile)), input_precision=PRECISION)
        if FOR_BACKWARD:
            store_columns(corrections + plane, HEADS * V, rows, valid, z, first_v, BV, V)
            state = states + index * K * V
            store_state(state, K, 1, s1_low, first_v, BV, V, 0, K1, K)
            store_state(state, K, 1, s2_low, first_v, BV, V, K1, K2, K)
        else:
            q1 = load_rows(q_base, q_stride_t, rows, valid, 0, K1, K)
            q2 = load_rows(q_base, q_stride_t, rows, valid, K1, K2, K)
            read = tl.dot(s1_low, tl.trans(q1), input_precision=PRECISION)
            read = tl.dot(s2_low, tl.trans(q2), read, input_precision=PRECISION)
            read = read * tl.load(vector + FROM_START_Q * CHUNK)[None, :]
            read = tl.dot(z.to(dtype), tl.trans(tl.load(attention + tile)), read, input_precision=PRECISION)
            store_columns(out + plane, HEADS * V, rows, valid, read, first_v, BV, V)
        written = (z * to_end_k[None, :]).to(dtype)
        decay = tl.load(chunk_decay + index)
        s1 = tl.dot(written, k1, s1 * decay, input_precision=PRECISION)
        s2 = tl.dot(written, k2, s2 * decay, input_precision=PRECISION)
    if HAS_FINAL:
        store_state(final_state + boundary_state, 1, V, s1, first_v, BV, V, 0, K1, K)
        store_state(final_state + boundary_state, 1, V, s2, first_v, BV, V, K1, K2, K)


@triton.jit(do_not_specialize=["length", "chunks_per_row"])
def scan_state_gradients(
    q, k, out_gradient, inverse, attention, factors, chunk_decay, final_state_gradient, chunk_offsets, cu_seqlens,
    v_gradient, state_gradients, initial_state_gradient,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, length, chunks_per_row,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    V: tl.constexpr, BV: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr,
    VARLEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dV, the gradient of the state after each chunk, and that of the initial state.

    Per chunk, last first: dZ = P^T dO + beta e^{G_C - G} K dS;  dV = dX = T^T dZ;
    dS <- e^{G_C} dS + (e^G Q)^T dO - (e^G K)^T dX.
    """
    first_v = tl.program_id(0) * BV
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    batch, start, size, first_chunk, chunks = locate_row(row, chunk_offsets, cu_seqlens, length, chunks_per_row, VARLEN)
    dtype = out_gradient.dtype.element_ty
    tokens = tl.arange(0, CHUNK)
    q_base = q + batch * q_stride_b + start * q_stride_t + (head // GROUP) * q_stride_h
    k_base = k + batch * k_stride_b + start * k_stride_t + (head // GROUP) * k_stride_h
    plane = ((batch * length + start) * HEADS + head) * V
    boundary_state = (row * HEADS + head).to(tl.int64) * K * V
    if HAS_FINAL:
        ds1 = load_state(final_state_gradient + boundary_state, 1, V, first_v, BV, V, 0, K1, K).to(tl.float32)
        ds2 = load_state(final_state_gradient + boundary_state, 1, V, first_v, BV, V, K1, K2, K).to(tl.float32)
    else:
        ds1 = tl.zeros((BV, K1), tl.float32)
        ds2 = tl.zeros((BV, K2), tl.float32)
    for step in range(chunks):
        n = chunks - 1 - step
        index = (first_chunk + n) * HEADS + head
        rows = n * CHUNK + tokens
        valid = rows < size
        rows = rows.to(tl.int64)
        tile = index * CHUNK * CHUNK + tokens[:, None] * CHUNK + tokens[None, :]
        vector = factors + index * FACTORS * CHUNK + tokens
        k1 = load_rows(k_base, k_stride_t, rows, valid, 0, K1, K)
        k2 = load_rows(k_base, k_stride_t, rows, valid, K1, K2, K)
        q1 = load_rows(q_base, q_stride_t, rows, valid, 0, K1, K)
        q2 = load_rows(q_base, q_stride_t, rows, valid, K1, K2, K)
        do = load_columns(out_gradient + plane, HEADS * V, rows, valid, first_v, BV, V)
        from_start_k = tl.load(vector + FROM_START_K * CHUNK)
        from_start_q = tl.load(vector + FROM_START_Q * CHUNK)
        to_end_k = tl.load(vector + TO_END_K * CHUNK)
        ds1_low, ds2_low = ds1.to(dtype), ds2.to(dtype)
        state = state_gradients + index * K * V
        store_state(state, K, 1, ds1_low, first_v, BV, V, 0, K1, K)
        store_state(state, K, 1, ds2_low, first_v, BV, V, K1, K2, K)
        dz = tl.dot(ds1_low, tl.trans(k1), input_precision=PRECISION)
        dz = tl.dot(ds2_low, tl.trans(k2), dz, input_precision=PRECISION)
        dz = tl.dot(do, tl.load(attention + tile), dz * to_end_k[None, :], input_precision=PRECISION)
        dx = tl.dot(dz.to(dtype), tl.load(inverse + tile), input_precision=PRECISION)
        store_columns(v_gradient + plane, HEADS * V, rows, valid, dx, first_v, BV, V)
        decay = tl.load(chunk_decay + index)
        read = (do * from_start_q[None, :]).to(dtype)
        recalled = (-dx * from_start_k[None, :]).to(dtype)
        ds1 = tl.dot(read, q1, ds1 * decay, input_precision=PRECISION)
        ds2 = tl.dot(read, q2, ds2 * decay, input_precision=PRECISION)
        ds1 = tl.dot(recalled, k1, ds1, input_precision=PRECISION)
        ds2 = tl.dot(recalled, k2, ds2, input_precision=PRECISION)
    if HAS_INITIAL:
        store_state(initial_state_gradient + boundary_state, 1, V, ds1, first_v, BV, V, 0, K1, K)
        store_state(initial_state_gradient + boundary_state, 1, V, ds2, first_v, BV, V, K1, K2, K)
