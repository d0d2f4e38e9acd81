"""Figures as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """0.38 -> "380 ms", 4.26 -> "4.3 s", 222 -> "3 min 42 s", 534_816 -> "6 d 4 h"."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small_size, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def ago(then_s: float, now_s: float) -> str:
    return f"{duration(max(0.0, now_s - then_s))} ago" if then_s else "-"


def percent(ratio: float | None) -> str:
    """Never rounds up to 100%: 0.99996 -> "99.99%"."""
    if ratio is None:
        return "-"
    return "100%" if ratio >= 1 else f"{min(ratio * 100, 99.99):.2f}%"


def count(number: float) -> str:
    """12345.6 -> "12,346"."""
    return f"{number:,.0f}"


def plural(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
