"""Which checkpoints remain. By default every permanent one: publishing a run needs its intermediate checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.folders import Folder
from trainer.checkpoint.manifest import EPHEMERAL, PERMANENT, read_manifest
from trainer.checkpoint.proof import is_proven
from trainer.checkpoint.tiers import Tier


@dataclass(frozen=True)
class Entry:
    """A committed checkpoint as retention sees it."""

    name: str
    kind: str


def surplus(
    newest_first: Sequence[Entry], keep: int, keep_ephemeral: int, proven: Callable[[Entry], bool]
) -> list[Entry]:
    """What may go: all but the newest `keep` permanent ones (0: none goes) and the newest `keep_ephemeral` proven
    ephemeral ones. What is newer than the newest proven one stays, and so does that one itself, of whatever kind.
    """
    at = next((index for index, entry in enumerate(newest_first) if proven(entry)), None)
    if at is None:
        return []
    newest, older = newest_first[at], newest_first[at + 1 :]
    permanent = [entry for entry in newest_first if entry.kind == PERMANENT]
    gone = [entry for entry in permanent[keep:] if entry in older] if keep > 0 else []
    room = keep_ephemeral - (newest.kind == EPHEMERAL)
    for entry in (entry for entry in older if entry.kind == EPHEMERAL):
        if room > 0 and proven(entry):
            room -= 1
        else:
            gone.append(entry)
    return gone


class Retention:
    """Applies `surplus` to a tier. Remembers manifests, which never change, so that a long run's are read once."""

    def __init__(self, tier: Tier, keep: int, keep_ephemeral: int) -> None:
        self._tier = tier
        self._keep, self._keep_ephemeral = keep, keep_ephemeral
        self._kinds: dict[str, str] = {}

    def apply(self) -> list[str]:
        """Remove the surplus; the names of what was removed. Damaged ones are left alone. Raises OSError."""
        folders = {folder.name: folder for folder in self._tier.folders()}
        entries = [Entry(name, kind) for name, folder in folders.items() if (kind := self._kind(folder))]
        gone = surplus(entries, self._keep, self._keep_ephemeral, lambda entry: _proven(folders[entry.name]))
        return [entry.name for entry in gone if self._tier.remove(folders[entry.name])]

    def _kind(self, folder: Folder) -> str:
        if folder.name not in self._kinds:
            try:
                self._kinds[folder.name] = read_manifest(folder).meta.kind
            except CheckpointError:
                return ""
        return self._kinds[folder.name]


def _proven(folder: Folder) -> bool:
    try:
        return is_proven(folder, read_manifest(folder))
    except CheckpointError:
        return False
