"""From a file to a checked `RunSpec`, or to every mistake in it with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.document import Document, Span, parse
from orchestrator.spec.errors import SpecError, SpecErrors
from orchestrator.spec.model import RunSpec
from orchestrator.spec.shapes import shape_errors
from orchestrator.spec.trainer_check import Problem, check_trainer, place_problems
from orchestrator.spec.translate import translate

Checker = Callable[[dict[str, Any], int], list[Problem]]


def load_spec(path: Path | str, *, check: Checker | None = check_trainer) -> RunSpec:
    """Read and check a run spec. Relative paths in it start at its folder.

    Raises:
        SpecErrors: what is wrong, by line and column; also when the file can't be read.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise SpecErrors([SpecError(str(path), 1, 1, f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise SpecErrors([SpecError(str(path), 1, 1, f"not UTF-8: byte {error.start} is wrong")]) from None
    return parse_spec(text, str(path), check=check)


def parse_spec(text: str, file: str, *, check: Checker | None = check_trainer) -> RunSpec:
    """As `load_spec`, for a text that stands in `file`. `check` is the trainer's check of its section; None skips it.

    Raises:
        SpecErrors: what is wrong, by line and column.
    """
    document = parse(text, file)
    spec = _validated(document)
    spec._folder = Path(file).absolute().parent
    errors = shape_errors(document, spec)
    if check and (config := spec.trainer_config("RUN_DIR")) is not None:
        errors += place_problems(document, check(config, spec.world_size))
    if errors:
        raise SpecErrors(_one_a_place(errors))
    return spec


def _validated(document: Document) -> RunSpec:
    if not isinstance(document.data, dict):
        hint = "a spec is keys and values: name, nodes, workload, ..."
        raise SpecErrors([document.error(Span(), "this is no run spec", hint)])
    try:
        return RunSpec.model_validate(document.data)
    except ValidationError as error:
        raise SpecErrors([translate(document, dict(e)) for e in error.errors()]) from None


def _one_a_place(errors: list[SpecError]) -> list[SpecError]:
    """Two checks may see one mistake: the first word on a place is enough."""
    first: dict[tuple[int, int], SpecError] = {}
    for error in errors:
        first.setdefault((error.line, error.column), error)
    return list(first.values())
