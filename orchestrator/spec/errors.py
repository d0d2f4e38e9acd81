"""Mistakes in a run spec, told the way a compiler tells them: where, what, and the likely fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SpecError:
    """One mistake. `line` and `column` count from 1; `width` is how many characters of `source` are meant."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    source: str = ""  # the line of the file
    width: int = 1

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)

    def render(self) -> str:
        """Lines of text: `file:line:column: error: message`, the source line with a caret, the hint."""
        out = [f"{self.file}:{self.line}:{self.column}: error: {self.message}"]
        if self.source:
            number = str(self.line)
            pad = "".join("\t" if c == "\t" else " " for c in self.source[: self.column - 1])
            underline = "^" + "~" * (min(self.width, len(self.source) - self.column + 1) - 1)
            out += [f" {number} | {self.source}", f" {' ' * len(number)} | {pad}{underline}"]
        if self.hint:
            out.append(f"   hint: {self.hint}")
        return "\n".join(out)


class SpecErrors(Exception):  # noqa: N818 - the plural is what it holds
    """All mistakes found in one spec, in the order of the file."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda e: (e.line, e.column)))
        super().__init__(self.render())

    def render(self) -> str:
        return "\n".join(e.render() for e in self.errors)
