"""The check of bit-exact resume in small: fewer deaths, two ranks."""

from __future__ import annotations

from pathlib import Path

import verify_resume
from verify_resume import Plan, verify


def test_a_run_killed_again_and_again_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    found = verify(Plan(kills=4, seed=3, mesh=(1, 2), meshes=((1, 1),)), tmp_path)
    assert found["unequal"] == []
    assert found["kills"] == 4
    assert found["kills_inside_save"] == 2
    assert found["outliers"] == [verify_resume.MIN_STEPS + 12]
    assert found["same_order"]
    assert list(found["reshard"]) == ["1x2->1"]
    assert found["holds"]
