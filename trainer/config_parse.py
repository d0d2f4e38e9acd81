"""Builds frozen dataclasses from YAML, strictly: unknown keys, wrong types and keys that stand twice are errors."""

from __future__ import annotations

import difflib
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

Section = TypeVar("Section")
_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "a mapping"}


class ConfigError(Exception):
    """The configuration can't be used. `key_path` is like "data.sequence_length"; empty: the file as a whole."""

    def __init__(self, key_path: str, message: str) -> None:
        super().__init__(f"{key_path}: {message}" if key_path else message)
        self.key_path = key_path
        self.message = message


def read_yaml(path: Path) -> object:
    """The file's value. Raises ConfigError: no such file, no YAML, or a key that stands twice."""
    try:
        return yaml.load(path.read_bytes(), _StrictLoader)
    except OSError as error:
        raise ConfigError("", f"{path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("", f"{path} is no YAML: {' '.join(str(error).split())}") from error


def build(kind: type[Section], value: object, at: str, problems: list[ConfigError]) -> Section | None:
    """Dataclass `kind` from the mapping at key path `at`; or None, with the reasons added to `problems`."""
    if not isinstance(value, dict):
        problems.append(ConfigError(at, f"expected a mapping, found {_name(value)}"))
        return None
    before = len(problems)
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    problems += [ConfigError(_join(at, key), _unknown(key, list(known))) for key in value if key not in known]
    problems += [
        ConfigError(_join(at, name), "is required")
        for name, each in known.items()
        if name not in value and each.default is MISSING and each.default_factory is MISSING
    ]
    given = {name: _convert(hints[name], value[name], _join(at, name), problems) for name in known if name in value}
    return kind(**given) if len(problems) == before else None


def _convert(hint: Any, value: object, at: str, problems: list[ConfigError]) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, at, problems)
    kind = get_origin(hint) or hint
    if kind in (list, tuple):
        return _convert_items(kind, get_args(hint), value, at, problems)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        problems.append(ConfigError(at, f"expected {_NAMES[kind]}, found {_name(value)}"))
    return value


def _convert_items(kind: type, hints: tuple, value: object, at: str, problems: list[ConfigError]) -> Any:
    """A list of one type, or a tuple of fixed length."""
    if not isinstance(value, list) or (kind is tuple and len(value) != len(hints)):
        expected = f"a list of {len(hints)}" if kind is tuple else "a list"
        problems.append(ConfigError(at, f"expected {expected}, found {_name(value)}"))
        return None
    each = hints if kind is tuple else hints * len(value)
    return kind(
        _convert(hint, item, f"{at}[{index}]", problems)
        for index, (hint, item) in enumerate(zip(each, value, strict=True))
    )


def _unknown(key: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}"


def _name(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    kind = _NAMES.get(type(value), type(value).__name__)
    return kind if isinstance(value, dict) else f"{kind} ({value!r})"


def _join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number (PyYAML reads YAML 1.1, where it is a text) and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(
                    str(key.value), f"stands twice in one mapping, again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
