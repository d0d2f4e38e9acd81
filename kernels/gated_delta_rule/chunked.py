"""The gated delta rule in chunks: matrix products inside a chunk, a scan over chunks. Plain PyTorch, any device.

The algebra is in README.md. Everything but the scan is batched over all chunks at once, so the number of operations
grows by three for each further chunk. Tensors are [N, B*H, C, D] here: chunk first, so that the scan reads contiguous
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gated_delta_rule.inputs import prepare

CHUNK_SIZE = 64


class _Decays(NamedTuple):
    """Products of gates inside a chunk, each in (0, 1] or zero where a document boundary lies between."""

    pairwise: Tensor  # [N, B*H, C, C]: from token j to token i >= j
    from_start: Tensor  # [N, B*H, C, 1]: from the state before the chunk to token i
    to_end: Tensor  # [N, B*H, C, 1]: from token j to the state after the chunk
    whole: Tensor  # [N, B*H, 1, 1]: of the state before the chunk in the state after it


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    normalize_qk: bool = False,
    document_ids: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor | None]:
    """The same function as `reference.recurrent_gated_delta_rule`, in O(T / chunk_size) steps.

    Args, returns and raises as there. `chunk_size` trades the C^2 work inside a chunk against the length of the scan; T
    need not be a multiple of it. Differentiable by autograd in every floating input.
    """
    x = prepare(
        q, k, v, g, beta,
        scale=scale, normalize_qk=normalize_qk, initial_state=initial_state, document_ids=document_ids,
    )  # fmt: skip
    batch, length, heads, _ = x.q.shape
    size = min(chunk_size, length)
    q_c, k_c, v_c = (_to_chunks(tensor, size) for tensor in (x.q, x.k, x.v))
    g_c, beta_c = (_to_chunks(tensor[..., None], size) for tensor in (x.g, x.beta))
    decays = _decays(g_c, None if document_ids is None else _chunked_ids(document_ids, size, heads))

    k_beta = k_c * beta_c
    k_t = k_c.transpose(-1, -2)
    rhs = torch.cat((v_c * beta_c, k_beta * decays.from_start), dim=-1)
    solved = _solve_unit_lower((k_beta @ k_t) * decays.pairwise, rhs)
    u, w = solved.split((v.shape[-1], k.shape[-1]), dim=-1)

    states, corrections, final = _scan(u, w, k_c * decays.to_end, decays.whole, x.initial_state)
    out = (q_c * decays.from_start) @ states + ((q_c @ k_t) * decays.pairwise) @ corrections
    out = _from_chunks(out, batch, heads)[:, :length].to(v.dtype)
    return out, final.unflatten(0, (batch, heads)) if output_final_state else None


def _to_chunks(x: Tensor, size: int) -> Tensor:
    """[B, T, H, D] -> [N, B*H, C, D], contiguous, padded with zeros: tokens that neither decay nor write nor read."""
    batch, length, heads, dim = x.shape
    chunks = -(-length // size)
    x = F.pad(x, (0, 0, 0, 0, 0, chunks * size - length))
    return x.view(batch, chunks, size, heads, dim).permute(1, 0, 3, 2, 4).reshape(chunks, batch * heads, size, dim)


def _from_chunks(x: Tensor, batch: int, heads: int) -> Tensor:
    """[N, B*H, C, D] -> [B, N*C, H, D], contiguous."""
    chunks, _, size, dim = x.shape
    x = x.view(chunks, batch, heads, size, dim).permute(1, 0, 3, 2, 4)
    return x.reshape(batch, chunks * size, heads, dim)


def _chunked_ids(document_ids: Tensor, size: int, heads: int) -> Tensor:
    """[B, T] -> [N, B*H, C]; padding continues the last document, so that its state reaches the end."""
    batch, length = document_ids.shape
    chunks = -(-length // size)
    last = document_ids[:, -1:].expand(batch, chunks * size - length)
    ids = torch.cat((document_ids, last), dim=1).view(batch, chunks, size).transpose(0, 1)
    return ids.repeat_interleave(heads, dim=1)


def _decays(g: Tensor, ids: Tensor | None) -> _Decays:
    """Decays from the log gates [N, B*H, C, 1] and, for packed rows, the non-decreasing document ids [N, B*H, C].

    Differences are masked before the exponential: above the diagonal they are positive and overflow, and an infinity
    times a zero of a later mask would be NaN, in the backward pass too.
    """
    cumulative = g.cumsum(dim=-2)
    causal = torch.ones(g.shape[-2], g.shape[-2], dtype=torch.bool, device=g.device).tril()
    between = cumulative - cumulative.transpose(-1, -2)
    after = cumulative[..., -1:, :] - cumulative
    if ids is not None:
        causal = causal & (ids[..., :, None] == ids[..., None, :])
        before_chunk = torch.cat((ids[:1, :, :1], ids[:-1, :, -1:]))
        cumulative = _masked(cumulative, (ids == before_chunk)[..., None])
        after = _masked(after, (ids == ids[..., -1:])[..., None])
    from_start = cumulative.exp()
    return _Decays(_masked(between, causal).exp(), from_start, after.exp(), from_start[..., -1:, :])


def _masked(log_decay: Tensor, keep: Tensor) -> Tensor:
    return log_decay.masked_fill(~keep, float("-inf"))


def _solve_unit_lower(a: Tensor, rhs: Tensor) -> Tensor:
    """X of `(I + strict_tril(a)) X = rhs`; the rest of `a` is not read.

    Asked for in transposed form, because the solver works on column-major matrices: row-major ones, taken as the
    transposes of those, are solved without copies in half the time.
    """
    return torch.linalg.solve_triangular(a.mT, rhs.mT, upper=True, left=False, unitriangular=True).mT


def _scan(
    u: Tensor, w: Tensor, k_to_end: Tensor, whole: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state over the chunks.

    Returns the states before each chunk [N, B*H, K, V], the corrected values v' = u - w S [N, B*H, C, V], and the state
    after the last chunk [B*H, K, V].
    """
    _, rows, _, key_dim = w.shape
    state = u.new_zeros(rows, key_dim, u.shape[-1]) if initial_state is None else initial_state.flatten(0, 1)
    states, corrections = [], []
    steps = zip(u.unbind(), w.unbind(), k_to_end.transpose(-1, -2).unbind(), whole.unbind(), strict=True)
    for u_n, w_n, k_n, whole_n in steps:
        correction = torch.baddbmm(u_n, w_n, state, alpha=-1)
        states.append(state)
        corrections.append(correction)
        state = torch.baddbmm(whole_n * state, k_n, correction)
    return torch.stack(states), torch.stack(corrections), state
