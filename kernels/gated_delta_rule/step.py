"""One token of the gated delta rule with a carried state, for decoding."""

from __future__ import annotations

from torch import Tensor

from kernels.gated_delta_rule.reference import recurrent_gated_delta_rule


def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    *,
    scale: float | None = None,
    normalize_qk: bool = False,
) -> tuple[Tensor, Tensor]:
    """What `recurrent_gated_delta_rule` does to one token. Reads and writes the state once, so any form of it is as fast.

    Args:
        q, k: [B, HQ, K]. v: [B, H, V]. g, beta: [B, H].
        state: [B, H, K, V] after the tokens before; None: there are none.
        scale, normalize_qk: as in `recurrent_gated_delta_rule`.

    Returns:
        o [B, H, V] in the dtype of v, and the next state in at least float32.

    Raises:
        ValueError: a shape does not fit.
    """
    out, state = recurrent_gated_delta_rule(
        q[:, None], k[:, None], v[:, None], g[:, None], beta[:, None],
        scale=scale, initial_state=state, output_final_state=True, normalize_qk=normalize_qk,
    )  # fmt: skip
    assert state is not None  # it was asked for
    return out[:, 0], state
