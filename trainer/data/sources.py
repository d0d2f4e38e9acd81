"""Which files hold the tokens: paths with wildcards, nested folders and OLMo-core's mix files."""

from __future__ import annotations

import glob
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import DataConfig
from trainer.data.errors import DataError, SourceNotFoundError

_MASK_NAMES = ("labels_mask", "label_mask")


@dataclass(frozen=True)
class Source:
    """A token file. `label` is the mix file's, else the name of its folder. `label_mask` is None without one."""

    path: Path
    label: str
    label_mask: Path | None = None


def list_sources(config: DataConfig) -> list[Source]:
    """The token files in order, with their label masks.

    Raises DataError when there are none or some lack the mask that others have, SourceNotFoundError for a missing one.
    """
    if config.mix:
        sources = _of_mix(config)
    else:
        paths = _expand(config.paths, "token file", lambda path: not path.name.startswith(_MASK_NAMES))
        sources = [Source(path, path.absolute().parent.name) for path in paths]
    if not sources:
        raise DataError("no token files are given: set data.paths or data.mix")
    sources = _with_masks(sources, config.label_masks)
    if config.source_permutation_seed >= 0:
        # OLMo-core's rule, with Python's generator: the order of files decides which instance has which number.
        random.Random(config.source_permutation_seed).shuffle(sources)
    return sources


def _expand(patterns: Iterable[str], what: str, wanted: Callable[[Path], bool]) -> list[Path]:
    """Files of paths, folders and patterns; those of one folder or pattern sorted as text, as OLMo-core sorts them."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if "://" in pattern:
            raise DataError(f"{pattern} is a URL: mount it, or copy its files to a disk that all nodes see")
        if path.is_file():
            found.append(path)
            continue
        if path.is_dir():
            names, complaint = glob.glob(f"{glob.escape(pattern)}/**/*.npy", recursive=True), "holds"
        elif "*" in pattern:
            # Only * and ** are wild, as in OLMo-core.
            names, complaint = glob.glob(re.sub(r"[?\[]", r"[\g<0>]", pattern), recursive=True), "matches"
        else:
            raise SourceNotFoundError(f"{what} {path} doesn't exist")
        inside = [Path(name) for name in sorted(names) if Path(name).is_file() and wanted(Path(name))]
        if not inside:
            raise DataError(f"{path} {complaint} no {what} (*.npy)")
        found += inside
    return found


def _of_mix(config: DataConfig) -> list[Source]:
    """Lines `label,path`; {TOKENIZER} is replaced; relative paths begin at mix_base; blank lines and # are skipped."""
    mix = Path(config.mix)
    if not mix.is_file():
        raise SourceNotFoundError(f"mix file {mix} doesn't exist")
    if "://" in config.mix_base:
        raise DataError(f"data.mix_base {config.mix_base} is a URL: mount it, or copy its files")
    base = Path(config.mix_base) if config.mix_base else mix.parent
    sources = []
    for number, line in enumerate(mix.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        label, comma, path = (part.strip() for part in line.partition(","))
        if not comma or not label or not path:
            raise DataError(f"{mix}, line {number}: expected `label,path`")
        if "{TOKENIZER}" in path and not config.mix_tokenizer:
            raise DataError(
                f"{mix}, line {number} names {{TOKENIZER}}: set data.mix_tokenizer, as in allenai/dolma3-tokenizer"
            )
        file = base / path.replace("{TOKENIZER}", config.mix_tokenizer)
        if not file.is_file():
            hint = "" if config.mix_base else "; relative paths begin at the mix file unless data.mix_base is set"
            raise SourceNotFoundError(f"token file {file} of {mix}, line {number}, doesn't exist{hint}")
        sources.append(Source(file, label))
    return sources


def _with_masks(sources: list[Source], given: list[str]) -> list[Source]:
    """Masks as given, one a token file in order; else token_ids_part_0000.npy finds labels_mask_part_0000.npy."""
    if given:
        masks: list[Path | None] = [*_expand(given, "label mask", lambda path: True)]
        if len(masks) != len(sources):
            raise DataError(f"data.label_masks names {len(masks)} files for {len(sources)} token files")
    else:
        masks = [_mask_beside(source.path) for source in sources]
        if any(masks) and not all(masks):
            having, lacking = masks.index(next(filter(None, masks))), masks.index(None)
            raise DataError(
                f"{sources[having].path} has a label mask beside it and {sources[lacking].path} has none: all or no "
                "token files can have one"
            )
    return [replace(source, label_mask=mask) for source, mask in zip(sources, masks, strict=True)]


def _mask_beside(path: Path) -> Path | None:
    name = path.name.replace("token_ids", "labels_mask", 1)
    return path.with_name(name) if name != path.name and path.with_name(name).is_file() else None
