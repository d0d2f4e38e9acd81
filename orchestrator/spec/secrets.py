"""Which environment values may be shown. Values of secret names never reach a screen, a log or the journal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SECRET_PARTS = ("TOKEN", "SECRET", "KEY", "PASSWORD", "PASSWD", "CREDENTIAL")
HIDDEN = "(hidden)"
# Where `env` may begin in a file that need not be valid: at a line's start, or anywhere in a spec written in braces.
_SECTION = re.compile(r"""["']?env\b|\{""")


def is_secret(name: str) -> bool:
    upper = name.upper()
    return any(part in upper for part in SECRET_PARTS)


def redacted(env: Mapping[str, str]) -> dict[str, str]:
    return {name: HIDDEN if is_secret(name) else value for name, value in env.items()}


def may_hold_secret(lines: Sequence[str], number: int) -> bool:
    """Whether line `number` (from 1) is in an `env` section that has any secret name: such a line is not echoed.

    Told by the text alone, since the YAML may be broken; the whole section, since a value can go over several lines.
    """
    begin = min(number, len(lines)) - 1
    while begin > 0 and not _top_level(lines[begin]):
        begin -= 1
    if begin < 0 or not _SECTION.match(lines[begin]):
        return False
    end = begin + 1
    while end < len(lines) and not _top_level(lines[end]):
        end += 1
    return any(is_secret(line) for line in lines[begin:end])


def _top_level(line: str) -> bool:
    return bool(line) and line[0] not in " \t#}]"
