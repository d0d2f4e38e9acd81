"""A YAML document that remembers where each of its keys and values stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.spec.errors import SpecError, SpecErrors
from orchestrator.spec.secrets import HIDDEN, may_hold_secret

MAX_CHARACTERS = 1 << 20
MAX_NODES = 20_000  # after aliases are followed: a few lines of nested aliases can stand for billions of values

Path = tuple[str | int, ...]


# PyYAML follows YAML 1.1, where 3e-4 is a text. Here it is a number, to the reader and to the writer alike.
EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def dump(data: Any) -> str:
    """YAML that `parse` reads as the same values: a text that looks like a number is quoted."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Span:
    """`line` and `column` count from 1."""

    line: int = 1
    column: int = 1
    width: int = 1


@dataclass
class Document:
    """`keys` and `values` map a path such as ("mesh", "shards") to where its key and its value stand."""

    file: str
    lines: list[str]
    data: Any = None
    keys: dict[Path, Span] = field(default_factory=dict)
    values: dict[Path, Span] = field(default_factory=dict)

    def error(self, span: Span, message: str, hint: str = "") -> SpecError:
        known = span.line <= len(self.lines) and not may_hold_secret(self.lines, span.line)
        source = self.lines[span.line - 1] if known else ""
        return SpecError(self.file, span.line, span.column, message, hint, source, span.width)

    def at_value(self, path: Path, message: str, hint: str = "") -> SpecError:
        return self.error(self._nearest(path, self.values), message, hint)

    def at_key(self, path: Path, message: str, hint: str = "") -> SpecError:
        return self.error(self._nearest(path, self.keys), message, hint)

    def _nearest(self, path: Path, spans: dict[Path, Span]) -> Span:
        """The span of the path or, where the file does not say it, of the key of the closest section above it."""
        if path in spans:
            return spans[path]
        while path:
            path = path[:-1]
            if path in self.keys:
                return self.keys[path]
        return Span()


def parse(text: str, file: str) -> Document:
    """Compose and construct one YAML document with the safe loader.

    Raises:
        SpecErrors: not YAML, empty, several documents, duplicate keys, an alias inside itself, or too large.
    """
    document = Document(file, text.splitlines())
    if len(text) > MAX_CHARACTERS:
        raise SpecErrors([document.error(Span(), f"the file is larger than {MAX_CHARACTERS} characters")])
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise SpecErrors([_yaml_error(document, error)]) from None
    try:
        root = loader.get_single_node()
        if root is None:
            raise SpecErrors([document.error(Span(), "the file is empty", "start from one of examples/*.yaml")])
        errors = _Walk(document).visit(root)
        if errors:
            raise SpecErrors(errors)
        document.data = loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise SpecErrors([_yaml_error(document, error)]) from None
    except RecursionError:
        raise SpecErrors([document.error(Span(), "brackets or sections are nested too deep")]) from None
    finally:
        loader.dispose()
    return document


def _yaml_error(document: Document, error: Exception) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None and isinstance(error, yaml.reader.ReaderError):
        before = "\n".join(document.lines)[: error.position]
        span = Span(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
    else:
        span = Span(mark.line + 1, mark.column + 1) if mark else Span()
    hint = ""
    source = document.lines[span.line - 1] if span.line <= len(document.lines) else ""
    if "\t" in source:
        hint = "YAML is indented by spaces; this line holds a tab"
    elif "mapping values are not allowed" in problem:
        hint = "quote a text that holds ': ', or check the indentation of this line and the one above"
    elif "expected a single document" in str(error):
        hint = "one spec a file: remove the '---' and what follows"
    if may_hold_secret(document.lines, span.line):
        problem = re.sub(r"'[^']*'", HIDDEN, problem)
    return document.error(span, f"not valid YAML: {problem}", hint)


def _span(node: yaml.Node) -> Span:
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Span(start.line + 1, start.column + 1, max(1, width))


class _Walk:
    """Fills the document's spans from the node tree, and finds what the constructor would let pass in silence."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.errors: list[SpecError] = []
        self.open: set[int] = set()  # nodes being visited: meeting one again is a cycle
        self.visited = 0

    def visit(self, root: yaml.Node) -> list[SpecError]:
        self._visit(root, ())
        return self.errors

    def _visit(self, node: yaml.Node, path: Path) -> None:
        self.visited += 1
        if self.visited > MAX_NODES:
            raise SpecErrors([self.document.error(_span(node), f"more than {MAX_NODES} values, aliases followed")])
        if id(node) in self.open:
            raise SpecErrors([self.document.error(_span(node), "an alias inside what it stands for")])
        self.open.add(id(node))
        self.document.values.setdefault(path, _span(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._visit(item, (*path, index))
        self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> None:
        first: dict[str, Span] = {}
        for key_node, value in node.value:
            span = _span(key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._visit(value, path)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.errors.append(self.document.error(span, "a key must be a plain word"))
                continue
            key = key_node.value
            if key in first:
                where = f"its first value is on line {first[key].line}; keep one of them"
                self.errors.append(self.document.error(span, f"the key '{key}' is given twice", where))
            first.setdefault(key, span)
            self.document.keys[(*path, key)] = span
            self._visit(value, (*path, key))
