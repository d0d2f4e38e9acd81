"""Counting of operations against published and hand-made figures."""

from __future__ import annotations

import pytest

from trainer.model.flops import peak_flops, throughput, training_flops
from trainer.model.presets import model_config


def test_slice_counts_as_the_published_figures_do() -> None:
    """45.8k tokens/s of the four-layer slice are 33.8% of an H100."""
    flops = training_flops(model_config("olmo_hybrid_7b", {"layers": 4}), 8192)
    assert flops.six_n == 6 * (1_603_227_636 - 100352 * 3840)
    assert throughput(flops, 45_800, 1.0, device_name="NVIDIA H100 80GB HBM3").mfu == pytest.approx(0.338, abs=5e-4)


def test_delta_rule_and_attention_are_counted_beside_the_parameters() -> None:
    hybrid = training_flops(model_config("olmo_hybrid_7b", {"layers": 4}), 8192)
    delta_rule = 3 * 48_318_382_080 / 8192  # three layers of 48.3 GFLOP
    attention = 4 * 3840 * (8192 + 1) / 2  # a token sees half of the others
    assert hybrid.model - hybrid.six_n == pytest.approx(3 * (delta_rule + attention), rel=1e-9)


def test_a_window_bounds_what_attention_costs() -> None:
    def extra(length: int, window: int) -> int:
        spec = model_config("olmo_hybrid_tiny", {"pattern": "S", "window": window})
        flops = training_flops(spec, length)
        return flops.model - flops.six_n

    # Rows of 4 with a window of 2 see 1, 2, 2, 2 tokens; unbounded 1, 2, 3, 4. Four layers of width 32.
    assert extra(4, 2) == 3 * 4 * 4 * 32 * 7 / 4
    assert extra(4, 4) == extra(4, 100) == 3 * 4 * 4 * 32 * 10 / 4


def test_throughput_is_of_one_device() -> None:
    flops = training_flops(model_config("olmo_hybrid_tiny"), 64)
    alone = throughput(flops, 1000, 2.0, device_name="NVIDIA H200")
    of_four = throughput(flops, 4000, 2.0, devices=4, device_name="NVIDIA H200")
    assert alone == of_four
    assert alone.tokens_per_s == 500


def test_an_unknown_device_has_no_share() -> None:
    result = throughput(training_flops(model_config("olmo_hybrid_tiny"), 64), 10, 1.0, device_name="cpu")
    assert result.mfu is None
    assert result.mfu_model is None
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
