"""Which checkpoints remain. By default all: publishing a run needs its intermediate checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.checkpoint.files import discard, sync
from trainer.checkpoint.reader import find


def retain(root: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` committed checkpoints (0: none is removed); returns what was removed."""
    surplus = find(root)[keep:] if keep > 0 else []
    return [path for path in surplus if discard(path)]


def set_aside(path: Path) -> Path:
    """Take a damaged checkpoint out of the list, keeping its bytes, so that its step can be saved again.

    For one rank, after all have agreed to pass it over. Returns its new path, `.damaged-step-...`. Raises OSError.
    """
    for number in range(1000):
        aside = path.with_name(f".damaged-{path.name}-{number}")
        if not aside.exists():
            os.rename(path, aside)
            sync(path.parent)
            return aside
    raise FileExistsError(f"{path} was set aside a thousand times; the storage needs a look")
