"""The Python standard library's own sources: a text of some ten megabytes that is on every machine with Python."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from trainer.data.errors import SourceNotFoundError

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def standard_library_files(root: Path | None = None) -> list[Path]:
    """Its .py files sorted by name, without tests and installed packages. `root`: elsewhere than this interpreter's.

    Raises SourceNotFoundError when there are none, as in an interpreter that keeps its library in a zip file.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found = [path for path in root.rglob("*.py") if _LEFT_OUT.isdisjoint(path.relative_to(root).parts)]
    if not found:
        raise SourceNotFoundError(f"no sources of the Python standard library under {root}")
    return sorted(found, key=lambda path: path.relative_to(root).parts)
