"""The trainer checks its own section: `python -m trainer check FILE --json`, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from orchestrator.spec.document import Document, Path, dump
from orchestrator.spec.errors import SpecError
from orchestrator.spec.translate import closest, number_hint

SECTION: Path = ("workload", "trainer")
CHECK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Problem:
    """What the trainer says of one key, dotted, such as "data.paths[0]"; an empty key is the whole section."""

    key: str
    message: str
    hint: str = ""


def check_trainer(config: dict[str, Any], world_size: int) -> list[Problem]:
    """Ask the trainer about a configuration with absolute paths. Empty when it is good."""
    with tempfile.TemporaryDirectory(prefix="holdfast-check-") as folder:
        file = FilePath(folder) / "trainer.yaml"
        file.write_text(dump({**config, "run_dir": folder}))
        argv = [sys.executable, "-m", "trainer", "check", str(file), "--world-size", str(world_size), "--json"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return [Problem("", f"the trainer's check gave no answer in {CHECK_TIMEOUT_S:.0f} s")]
    try:
        return [Problem(str(p["key"]), str(p["message"]), str(p.get("hint", ""))) for p in json.loads(done.stdout)]
    except (ValueError, TypeError, KeyError, AttributeError):
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        return [Problem("", f"the trainer's check failed with exit code {done.returncode}: {last}")]


def place_problems(document: Document, problems: list[Problem]) -> list[SpecError]:
    """The problems at the lines of the spec that caused them."""
    return [_place(document, problem) for problem in problems]


def _place(document: Document, problem: Problem) -> SpecError:
    parts = problem.key.replace("[", ".").replace("]", "").split(".")
    path = SECTION + tuple(int(part) if part.isdigit() else part for part in parts if part)
    message = f"'{problem.key}': {problem.message}" if problem.key else problem.message
    if not problem.key or "unknown key" in problem.message:
        return document.at_key(path, message, problem.hint)
    value = _value(document.data, path)
    if isinstance(value, dict) and isinstance(value.get("name"), str):  # the section's subject: a wrong model's name
        path, value = (*path, "name"), value["name"]
    return document.at_value(path, message, problem.hint or number_hint(value) or _meant(value, problem.message))


def _meant(value: Any, message: str) -> str:
    """The word most like a wrong text among those that the message offers."""
    if not isinstance(value, str):
        return ""
    guess = closest(value, set(re.findall(r"[A-Za-z0-9_]{3,}", message)) - {value})
    return f"did you mean '{guess}'?" if guess else ""


def _value(data: Any, path: Path) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data
