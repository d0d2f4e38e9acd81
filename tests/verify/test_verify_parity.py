"""`make verify-parity` in small: what it computes, and that it can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import verify_parity


@pytest.mark.parametrize(("bound", "code"), [(1e-4, 0), (0.0, 1)])
def test_the_report_says_what_was_found_and_a_broken_bound_fails(
    bound: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parity = verify_parity.parity
    monkeypatch.setattr(parity, "MODELS", {"tiny": ("olmo_hybrid_tiny", {})})
    monkeypatch.setattr(parity, "LENGTHS", (5, 65))
    monkeypatch.setitem(parity.BOUNDS, "logits", bound)
    out = tmp_path / "verify" / "parity.json"
    monkeypatch.setattr(sys, "argv", ["verify_parity", "--out", str(out)])
    assert verify_parity.main() == code
    report = json.loads(out.read_text())
    assert report["holds"] is (code == 0)
    assert report["export_loads"]
    assert report["import_round_trip"]
    found = report["models"]["tiny"]
    assert 0 < found["logits"] < 1e-4
    assert found["broken"] == (["logits"] if code else [])
    assert len(found["cases"]) == 3


def test_an_export_that_lacks_a_weight_does_not_load(tmp_path: Path) -> None:
    ours, theirs = verify_parity.parity.pair(verify_parity.parity.spec_of("olmo_hybrid_1m"))
    theirs.save_pretrained(tmp_path)
    state = verify_parity.parity.released_state(ours)
    for name in ("model.layers.0.linear_attn.o_proj.weight", "lm_head.weight"):
        kept = {each: tensor.contiguous() for each, tensor in state.items() if each != name}
        verify_parity.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert not verify_parity.export_loads(tmp_path, theirs)
