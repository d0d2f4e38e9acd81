"""The gated delta rule token by token: slow, short, and what every other form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gated_delta_rule.inputs import prepare


def recurrent_gated_delta_rule(
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
) -> tuple[Tensor, Tensor | None]:
    """Run `S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T`, `o_t = S_t^T q_t` for each head.

    The recurrence of Gated DeltaNet (Yang, Kautz, Hatamizadeh, arXiv:2412.06464), with beta up to 2 for negative
    eigenvalues (Grazzi et al., arXiv:2411.12537).

    Args:
        q, k: [B, T, HQ, K], any floating dtype. With `normalize_qk` they are L2-normalised over K first.
        v: [B, T, H, V]; H is a multiple of HQ, and value head h reads key head h // (H / HQ).
        g: [B, T, H], the log of the decay, <= 0.
        beta: [B, T, H], in [0, 2].
        scale: of q; K^-0.5 by default.
        initial_state: [B, H, K, V]; belongs to the first document of its row. Zero by default.
        document_ids: integers [B, T], non-decreasing; the state is zeroed wherever the id grows.

    Returns:
        o [B, T, H, V] in the dtype of v, and the state after the last token, [B, H, K, V] in at least float32, or None.

    Raises:
        ValueError: a shape does not fit.
    """
    x = prepare(
        q, k, v, g, beta,
        scale=scale, normalize_qk=normalize_qk, initial_state=initial_state, document_ids=document_ids,
    )  # fmt: skip
    batch, length, heads, key_dim = x.k.shape
    state = x.v.new_zeros(batch, heads, key_dim, v.shape[-1]) if x.initial_state is None else x.initial_state
    outputs = []
    for t in range(length):
        if document_ids is not None and t > 0:
            goes_on = document_ids[:, t] == document_ids[:, t - 1]
            state = torch.where(goes_on[:, None, None, None], state, 0.0)
        state = x.g[:, t].exp()[..., None, None] * state
        recalled = torch.einsum("bhk,bhkv->bhv", x.k[:, t], state)
        correction = x.beta[:, t, :, None] * (x.v[:, t] - recalled)
        state = state + torch.einsum("bhk,bhv->bhkv", x.k[:, t], correction)
        outputs.append(torch.einsum("bhk,bhkv->bhv", x.q[:, t], state))
    return torch.stack(outputs, dim=1).to(v.dtype), state if output_final_state else None
