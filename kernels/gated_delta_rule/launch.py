"""Host side of the Triton kernels: geometry, buffers and launches. Nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.gated_delta_rule.chunk_kernel import FACTORS, intra_chunk
from kernels.gated_delta_rule.configurations import Kernel, configuration
from kernels.gated_delta_rule.gradient_kernel import chunk_gradients
from kernels.gated_delta_rule.state_kernels import scan_state_gradients, scan_states
from kernels.gated_delta_rule.tiles import CHUNK
from kernels.l2norm.reference import L2_NORM_EPS

CHUNK_SIZE = CHUNK.value
LEAST_BLOCK = 16  # the least side of a Triton dot


class Saved(NamedTuple):
    """What the forward pass keeps for the backward pass, by chunk and value head; chunks C = 64."""

    inverse: Tensor  # [N, H, C, C], dtype of q
    attention: Tensor  # [N, H, C, C], dtype of q
    factors: Tensor  # [N, H, FACTORS, C], float32
    chunk_decay: Tensor  # [N, H], float32


class Gradients(NamedTuple):
    """Of each input; `initial_state` is empty where there was none."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Tensor


@dataclass(frozen=True)
class Geometry:
    """Sizes and chunk addresses of one call.

    With `cu_seqlens` a row is a document and its chunks start at its beginning. How many chunks there are is known on
    the device alone, so `chunks` bounds it from above; the surplus ones hold no token.
    """

    rows: int
    length: int
    heads: int
    group: int
    key_dim: int
    value_dim: int
    chunks: int
    chunks_per_row: int
    packed: bool
    varlen: bool
    chunk_rows: Tensor | None
    chunk_offsets: Tensor | None

    @classmethod
    def of(cls, q: Tensor, v: Tensor, document_ids: Tensor | None, cu_seqlens: Tensor | None) -> Geometry:
        batch, length, query_heads, key_dim = q.shape
        heads, value_dim = v.shape[2:]
        per_row = -(-length // CHUNK_SIZE)
        rows, chunks = batch, batch * per_row
        chunk_rows = chunk_offsets = None
        if cu_seqlens is not None:
            rows = cu_seqlens.shape[0] - 1
            chunks = length // CHUNK_SIZE + rows
            chunk_rows, chunk_offsets = _chunk_table(cu_seqlens, chunks)
        return cls(
            rows, length, heads, heads // query_heads, key_dim, value_dim, chunks, per_row,
            document_ids is not None, cu_seqlens is not None, chunk_rows, chunk_offsets,
        )  # fmt: skip

    @property
    def key_blocks(self) -> tuple[int, int]:
        """Powers of two that together hold K: 96 as 64 + 32, 128 as 64 + 64."""
        largest = 1 << (self.key_dim.bit_length() - 1)
        if largest == self.key_dim:
            half = max(largest // 2, LEAST_BLOCK)
            return half, half
        rest = triton.next_power_of_2(self.key_dim - largest)
        return max(largest, LEAST_BLOCK), max(rest, LEAST_BLOCK)

    def value_block(self, wanted: int, steps: int = 1) -> int:
        """Value columns of a block: at most `wanted`, and few enough for `steps` blocks where V allows.

        A loop needs two steps: one is unrolled, and then ptxas 12.8 (Triton 3.6, sm_90) reloads the spilled address of
        an operand from the stack pointer: seen in `chunk_gradients` at K = V = 64, as reads outside of shared memory.
        """
        return min(wanted, max(triton.next_power_of_2(self.value_dim) // steps, LEAST_BLOCK))

    def constants(self) -> dict[str, Any]:
        k1, k2 = self.key_blocks
        return {
            "HEADS": self.heads, "GROUP": self.group, "K": self.key_dim, "K1": k1, "K2": k2, "VARLEN": self.varlen,
        }  # fmt: skip


def _chunk_table(cu_seqlens: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """The document of each chunk [chunks] and the first chunk of each document [N + 1], both int32, on the device."""
    counts = (cu_seqlens.diff() + CHUNK_SIZE - 1) // CHUNK_SIZE
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    index = torch.arange(chunks, device=cu_seqlens.device, dtype=torch.int32)
    rows = torch.searchsorted(offsets[1:].contiguous(), index, right=True, out_int32=True)
    return rows.clamp_max(cu_seqlens.shape[0] - 2), offsets


def _capability(x: Tensor) -> tuple[int, int]:
    """Compute capability; the interpreter takes sm_90's configurations."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)


def _options(kernel: Kernel, x: Tensor) -> dict[str, Any]:
    """Launch options and dot precision; three tf32 products stand for one of float32."""
    found = configuration(kernel, _capability(x), x.element_size())
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"
    limit = {} if found.max_registers is None else {"maxnreg": found.max_registers}
    return {
        "num_warps": found.num_warps, "num_stages": found.num_stages, "PRECISION": precision, "BV": found.value_block,
        **limit,
    }  # fmt: skip


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
    initial_state: Tensor | None, document_ids: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize_qk: bool, output_final_state: bool,
) -> tuple[Tensor, Tensor, Saved]:  # fmt: skip
    """o [B, T, H, V], the final states [rows, H, K, V] in float32 (empty if not asked for), and what backward needs.

    Args as `kernels.ops.gated_delta_rule`, checked; q, k and v contiguous in their last dimension, the others wholly.
    """
    geometry = Geometry.of(q, v, document_ids, cu_seqlens)
    saved = _empty_saved(geometry, q)
    options = _options("intra_chunk", q)
    options.pop("BV")
    table = (geometry.chunk_rows, geometry.chunk_offsets, cu_seqlens)
    intra_chunk[(geometry.chunks * geometry.heads,)](
        q, k, g, beta, document_ids, *table, *saved, *_strides(q, k), geometry.length, geometry.chunks_per_row, scale,
        EPS=L2_NORM_EPS, NORMALIZE=normalize_qk, PACKED=geometry.packed, SOLVE_PRECISION=options["PRECISION"],
        **geometry.constants(), **options,
    )  # fmt: skip
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    shape = (geometry.rows, geometry.heads, geometry.key_dim, geometry.value_dim)
    final = torch.empty(shape if output_final_state else 0, dtype=torch.float32, device=v.device)
    _launch_scan(geometry, "scan_states", q, k, v, saved, initial_state, cu_seqlens, out=out, final_state=final)
    return out, final, saved


def _empty_saved(geometry: Geometry, q: Tensor) -> Saved:
    tile = (geometry.chunks, geometry.heads, CHUNK_SIZE, CHUNK_SIZE)
    factors = (geometry.chunks, geometry.heads, FACTORS.value, CHUNK_SIZE)
    return Saved(
        q.new_empty(tile),
        q.new_empty(tile),
        q.new_empty(factors, dtype=torch.float32),
        q.new_empty(factors[:2], dtype=torch.float32),
    )


def _launch_scan(
    geometry: Geometry, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, saved: Saved,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, *,
    out: Tensor | None = None, final_state: Tensor | None = None,
    corrections: Tensor | None = None, states: Tensor | None = None,
) -> None:  # fmt: skip
    options = _options(kernel, q)
    options["BV"] = geometry.value_block(options["BV"])
    scan_states[(triton.cdiv(geometry.value_dim, options["BV"]), geometry.rows * geometry.heads)](
        q, k, v, *saved, initial_state, geometry.chunk_offsets, cu_seqlens, out, corrections, states, final_state,
        *_strides(q, k, v), geometry.length, geometry.chunks_per_row, V=geometry.value_dim,
        HAS_INITIAL=initial_state is not None, HAS_FINAL=final_state is not None and final_state.numel() > 0,
        FOR_BACKWARD=states is not None, **geometry.constants(), **options,
    )  # fmt: skip


def run_backward(
    out_gradient: Tensor, final_state_gradient: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
    initial_state: Tensor | None, document_ids: Tensor | None, cu_seqlens: Tensor | None, saved: Saved,
    scale: float, normalize_qk: bool,
) -> Gradients:  # fmt: skip
    """Gradients in the dtypes of their inputs. `out_gradient` must be contiguous; states are computed again."""
    geometry = Geometry.of(q, v, document_ids, cu_seqlens)
    states = q.new_empty(geometry.chunks, geometry.heads, geometry.value_dim, geometry.key_dim)
    corrections = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    _launch_scan(
        geometry, "scan_states_for_backward", q, k, v, saved, initial_state, cu_seqlens,
        corrections=corrections, states=states,
    )  # fmt: skip
    state_gradients = torch.empty_like(states)
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    d_initial = torch.empty(0 if initial_state is None else initial_state.shape, dtype=torch.float32, device=v.device)
    options = _options("scan_state_gradients", q)
    options["BV"] = geometry.value_block(options["BV"])
    scan_state_gradients[(triton.cdiv(geometry.value_dim, options["BV"]), geometry.rows * geometry.heads)](
        q, k, out_gradient, *saved, final_state_gradient, geometry.chunk_offsets, cu_seqlens,
        dv, state_gradients, d_initial, *_strides(q, k), geometry.length, geometry.chunks_per_row,
        V=geometry.value_dim, HAS_INITIAL=initial_state is not None, HAS_FINAL=final_state_gradient is not None,
        **geometry.constants(), **options,
    )  # fmt: skip
    dq, dk, dg, dbeta = _launch_chunk_gradients(
        geometry, q, k, g, beta, document_ids, cu_seqlens, out_gradient, dv, corrections, states, state_gradients,
        saved, scale, normalize_qk,
    )  # fmt: skip
    if initial_state is not None:
        d_initial = d_initial.to(initial_state.dtype)
    return Gradients(dq, dk, dv, dg, dbeta, d_initial)


def _launch_chunk_gradients(
    geometry: Geometry, q: Tensor, k: Tensor, g: Tensor, beta: Tensor,
    document_ids: Tensor | None, cu_seqlens: Tensor | None,
    out_gradient: Tensor, dv: Tensor, corrections: Tensor, states: Tensor, state_gradients: Tensor,
    saved: Saved, scale: float, normalize_qk: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dg, dbeta; those of a group of value heads are summed in float32."""
    options = _options("chunk_gradients", q)
    options["BV"] = geometry.value_block(options["BV"], steps=2)
    by_value_head = (*q.shape[:2], geometry.heads, geometry.key_dim)
    dtype = q.dtype if geometry.group == 1 else torch.float32
    dq, dk = (torch.empty(by_value_head, dtype=dtype, device=q.device) for _ in range(2))
    dg = torch.empty(g.shape, dtype=torch.float32, device=g.device)
    dbeta = torch.empty(beta.shape, dtype=beta.dtype, device=g.device)
    chunk_gradients[(geometry.chunks * geometry.heads,)](
        q, k, beta, document_ids, out_gradient, dv, corrections, states, state_gradients,
        saved.factors, saved.chunk_decay, geometry.chunk_rows, geometry.chunk_offsets, cu_seqlens,
        dq, dk, dg, dbeta, *_strides(q, k), geometry.length, geometry.chunks_per_row, scale,
        V=geometry.value_dim, NORMALIZE=normalize_qk, PACKED=geometry.packed, BLACKWELL=_capability(q) >= (10, 0),
        **geometry.constants(), **options,
    )  # fmt: skip
    if geometry.group > 1:
        dq, dk = (x.unflatten(2, (q.shape[2], geometry.group)).sum(3).to(q.dtype) for x in (dq, dk))
    return dq, dk, dg.to(g.dtype), dbeta
