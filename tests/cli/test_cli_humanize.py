import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.humanize import ago, duration, percent
from orchestrator.cli.tables import shares


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.38, "380 ms"),
        (0.9996, "1.0 s"),
        (4.26, "4.3 s"),
        (59.96, "1 min"),
        (222, "3 min 42 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (534_816, "6 d 4 h"),
        (-2, "-2.0 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_percent_never_rounds_up_to_all():
    assert percent(0.99996) == "99.99%"
    assert percent(0.3 - 0.1) == "20.00%"
    assert percent(0.0) == "0.00%"
    assert percent(1.0) == "100%"
    assert percent(None) == "-"
    assert ago(0, 5) == "-"
    assert ago(3, 5) == "2.0 s ago"


@given(st.lists(st.floats(0, 1e6), max_size=12), st.integers(12, 80))
def test_a_bar_is_full_and_shows_every_phase_that_took_time(seconds, cells):
    widths = shares(seconds, cells)
    assert sum(widths) == (cells if any(seconds) else 0)
    assert all((width > 0) == (s > 0) for width, s in zip(widths, seconds, strict=True))
