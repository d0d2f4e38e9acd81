"""`python -m trainer checkpoint list | verify | show | export-dcp`.

Exit codes: 0 ok, 1 damaged or failed, 2 usage, 4 nothing there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.checkpoint.dcp import export_dcp
from trainer.checkpoint.errors import CheckpointDamagedError, CheckpointError
from trainer.checkpoint.folders import Folder, as_folder
from trainer.checkpoint.local import LocalTier
from trainer.checkpoint.manifest import Manifest, read_manifest, step_of
from trainer.checkpoint.proof import is_proven, prove
from trainer.checkpoint.reader import open_shards
from trainer.checkpoint.tiers import open_tier

_DAMAGED, _ABSENT = 1, 4
_COLUMNS = "{:>10}  {:<8} {:<10} {:<7} {:>7} {:>10}  {}"


@dataclass(frozen=True)
class Row:
    """One checkpoint as `list` shows it. `damage` is empty for a sound one, as far as names and sizes tell."""

    step: int
    tier: str
    kind: str
    proven: bool
    shards: int
    bytes: int
    path: str
    damage: str = ""


def main(argv: list[str]) -> int:
    """Run `checkpoint ...` with the arguments after `checkpoint`; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return _DAMAGED
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or arguments.path}", file=sys.stderr)
        return _ABSENT if isinstance(error, FileNotFoundError) else _DAMAGED


def _list(arguments: argparse.Namespace) -> int:
    rows = list(_rows(arguments.path))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        print(_COLUMNS.format("step", "tier", "kind", "proven", "shards", "size", "path"))
        for row in rows:
            proven = "damaged" if row.damage else "yes" if row.proven else "no"
            kind, size = row.kind or "?", human_bytes(row.bytes)
            print(_COLUMNS.format(row.step, row.tier, kind, proven, row.shards, size, row.damage or row.path))
    if not rows:
        print(f"no checkpoints in {arguments.path}", file=sys.stderr)
        return _ABSENT
    return _DAMAGED if any(row.damage for row in rows) else 0


def _rows(place: str) -> Iterator[Row]:
    for folder in open_tier(place).folders():
        step = step_of(folder) or 0
        try:
            manifest = read_manifest(folder)
            _check_sizes(folder, manifest)
        except CheckpointError as error:
            why = error.why if isinstance(error, CheckpointDamagedError) else str(error)
            yield Row(step, "durable", "", False, 0, 0, str(folder), why)
            continue
        proven = is_proven(folder, manifest)
        yield Row(step, "durable", manifest.meta.kind, proven, manifest.shards, manifest.stored_bytes, str(folder))
    if "://" not in place:
        local = LocalTier(Path(place), 2, frozenset())
        for save_id, shards in local.saves().items():
            size = sum(sidecar.bytes for sidecar in shards.sidecars)
            kind, path = shards.meta.kind, str(shards.folder)
            proven = local.proven(save_id, shards)
            yield Row(save_id.step, "local", kind, proven, len(shards.sidecars), size, path)


def _verify(arguments: argparse.Namespace) -> int:
    """One checkpoint, or all below a root."""
    one = as_folder(arguments.path)
    folders = [one] if step_of(one) is not None else open_tier(arguments.path).folders()
    if not folders:
        print(f"no checkpoints in {arguments.path}", file=sys.stderr)
        return _ABSENT
    return max([_verify_one(folder) for folder in folders])


def _verify_one(folder: Folder) -> int:
    try:
        manifest = prove(folder)
    except CheckpointError as error:
        print(f"damaged  {error}")
        return _DAMAGED
    print(f"proven   {folder}: {human_bytes(manifest.stored_bytes)} in {manifest.shards} shards")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    shards = open_shards(arguments.path)
    folder, manifest = shards.folder, read_manifest(arguments.path)
    _check_sizes(folder, manifest)
    meta = asdict(manifest.meta)
    if arguments.json:
        tensors = {name: asdict(tensor) for name, tensor in shards.tensors().items()}
        print(json.dumps({**manifest.to_json(), "tensors": tensors}, indent=1))
        return 0
    print(f"step {manifest.step}, {meta['kind']}, {'proven' if is_proven(folder, manifest) else 'not proven yet'}")
    print(f"{human_bytes(manifest.stored_bytes)} in {manifest.shards} shards, attempt {manifest.attempt}")
    print(f"torch {manifest.torch}, digest {manifest.digest}")
    for key in ("position", "tokens", "seed", "mesh", "model", "config_sha256"):
        print(f"{key:<14}{meta[key]}")
    for name, tensor in sorted(shards.tensors().items()):
        print(f"  {name}  {tensor.dtype} {list(tensor.shape)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    slots = ("weights",) if arguments.weights else ("weights", "exp_avg", "exp_avg_sq")
    size = export_dcp(arguments.path, arguments.out, slots=slots)
    print(f"{arguments.out}: {human_bytes(size)}; read it with torch.distributed.checkpoint.load")
    return 0


def _check_sizes(folder: Folder, manifest: Manifest) -> None:
    for name, said in manifest.files.items():
        try:
            size = folder.stat(name).bytes
        except OSError as error:
            raise CheckpointDamagedError(folder, f"{name} can't be read: {error.strerror or error}") from error
        if size != said["bytes"]:
            raise CheckpointDamagedError(folder, f"{name} has {size} bytes instead of {said['bytes']}")


def human_bytes(size: int) -> str:
    """In powers of 1000."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer checkpoint", description="Look at checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, path: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", metavar=path, help="folder or URL")
        command.set_defaults(run=run)
        return command

    add("list", _list, "List a tier's checkpoints; sizes are checked, bytes are not.", "ROOT").add_argument(
        "--json", action="store_true"
    )
    add("verify", _verify, "Check every byte of a checkpoint, or of all in a tier.", "PATH")
    add("show", _show, "Show what a checkpoint holds.", "STEP_DIR").add_argument("--json", action="store_true")
    export = add("export-dcp", _export, "Write a checkpoint as torch.distributed.checkpoint does.", "STEP_DIR")
    export.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    export.add_argument("--weights", action="store_true", help="the weights alone")
    return parser
