"""What pydantic found, said in the words of the spec."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from orchestrator.spec.document import Document, Path
from orchestrator.spec.errors import SpecError
from orchestrator.spec.model import MeshSpec, RunSpec, WorkloadSpec
from orchestrator.spec.secrets import is_secret

SECTIONS: dict[Path, type[BaseModel]] = {(): RunSpec, ("mesh",): MeshSpec, ("workload",): WorkloadSpec}
EXPECTED = {
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "list_type": "a list",
}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one, or nothing."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), "")


def shown(value: Any) -> str:
    """A value of the file as the reader wrote it, with its kind."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value}'" if len(value) <= 60 else "a long text"
    if isinstance(value, dict):
        return "a section"
    return "a list" if isinstance(value, list) else f"{value}"


def translate(document: Document, error: dict[str, Any]) -> SpecError:
    """One entry of `ValidationError.errors()` at its place in the file."""
    path, kind, value = _file_path(error["loc"]), error["type"], error["input"]
    name = ".".join(map(str, path)) or "the spec"
    if path[:1] == ("env",) and len(path) > 1 and is_secret(str(path[1])):
        return document.at_value(path, f"'{name}' must be a text", "quote it; its value is not shown here")
    if kind == "extra_forbidden":
        return unknown_key(document, path, _keys(SECTIONS.get(path[:-1], RunSpec)))
    if kind == "missing":
        known = f"add '{path[-1]}: ...'"
        return document.at_value(path, f"'{path[-1]}' is missing{_inside(path)}", known)
    if kind in EXPECTED:
        hint = _type_hint(kind, value)
        return document.at_value(path, f"'{name}' must be {EXPECTED[kind]}, not {shown(value)}", hint)
    if kind == "greater_than_equal":
        return document.at_value(path, f"'{name}' must be at least {error['ctx']['ge']}, not {value}")
    if kind == "less_than_equal":
        return document.at_value(path, f"'{name}' must be at most {error['ctx']['le']}, not {value}")
    if kind == "string_pattern_mismatch":
        return _pattern(document, path, name, value)
    if kind == "string_too_long":
        return document.at_value(path, f"'{name}' is longer than {error['ctx']['max_length']} characters")
    if kind == "too_short":
        return document.at_value(path, f"'{name}' must not be empty")
    return document.at_value(path, f"'{name}': {error['msg']}")


def unknown_key(document: Document, path: Path, known: Iterable[str]) -> SpecError:
    known = list(known)
    guess = closest(str(path[-1]), known)
    hint = f"did you mean '{guess}'?" if guess else f"known keys: {', '.join(known)}"
    return document.at_key(path, f"unknown key '{path[-1]}'{_inside(path)}", hint)


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def number_hint(value: Any) -> str:
    """For a text that looks like a number, because it is quoted."""
    return f"write {value.strip()} without quotes" if isinstance(value, str) and NUMBER.fullmatch(value.strip()) else ""


def _file_path(loc: tuple[str | int, ...]) -> Path:
    """pydantic marks the key of a mapping by a last "[key]"."""
    return tuple(part for part in loc if part != "[key]")


def _inside(path: Path) -> str:
    return f" in '{'.'.join(map(str, path[:-1]))}'" if len(path) > 1 else ""


def _type_hint(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f'quote it: "{str(value).lower() if isinstance(value, bool) else value}"'
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "bool_type" and isinstance(value, str):
        guess = closest(value.lower(), ("true", "false"))
        return f"did you mean {guess}?" if guess else "write true or false without quotes"
    if kind == "list_type" and isinstance(value, str):
        return f"write [{', '.join(value.split())}]"
    return number_hint(value) if kind == "int_type" else ""


def _pattern(document: Document, path: Path, name: str, value: str) -> SpecError:
    if path[0] == "env":
        message = f"'{value}' is no name of an environment variable"
        return document.at_key(path, message, "letters, digits and _, not starting with a digit")
    fixed = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    hint = "small letters, digits and -, neither first nor last a -" + (f": '{fixed}'" if fixed else "")
    return document.at_value(path, f"'{name}' can't be {shown(value)}", hint)
