"""One token with a carried state against the whole sequence."""

from __future__ import annotations

import pytest
import torch

from kernels.gated_delta_rule.chunked import chunk_gated_delta_rule
from kernels.ops import gated_delta_rule_step, short_convolution, short_convolution_step

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("query_heads", [1, 2])
@pytest.mark.parametrize("normalize_qk", [False, True])
def test_delta_rule_token_by_token(normalize_qk: bool, query_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 70, query_heads, 5, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    v = torch.randn(2, 70, 2, 4, generator=generator, dtype=torch.float64)
    g = -torch.rand(2, 70, 2, generator=generator, dtype=torch.float64)
    beta = 2 * torch.rand(2, 70, 2, generator=generator, dtype=torch.float64)
    whole, final = chunk_gated_delta_rule(q, k, v, g, beta, normalize_qk=normalize_qk, output_final_state=True)
    state, outputs = None, []
    for t in range(70):
        token = (x[:, t] for x in (q, k, v, g, beta))
        out, state = gated_delta_rule_step(*token, state, normalize_qk=normalize_qk)
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, dim=1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_convolution_token_by_token(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, width, generator=generator, dtype=torch.float64)
    state, outputs = x.new_zeros(2, width - 1, 3), []
    for token in x.unbind(dim=1):
        y, state = short_convolution_step(token, weight, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), short_convolution(x, weight), rtol=1e-12, atol=1e-12)
    assert torch.equal(state, x[:, 9 - (width - 1) :])


def test_a_step_keeps_the_dtype_and_sums_in_float32() -> None:
    x, weight, state = (torch.rand(*shape).bfloat16() for shape in ((2, 3), (3, 4), (2, 3, 3)))
    y, following = short_convolution_step(x, weight, state)
    assert y.dtype == following.dtype == torch.bfloat16
    assert torch.equal(y, short_convolution_step(x.float(), weight.float(), state.float())[0].bfloat16())


def test_a_misshapen_state_is_named() -> None:
    with pytest.raises(ValueError, match=r"state \[B, W - 1, C\].*\(2, 4, 3\)"):
        short_convolution_step(torch.zeros(2, 3), torch.zeros(3, 4), torch.zeros(2, 4, 3))
