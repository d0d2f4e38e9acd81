"""`python -m trainer data`: exit codes 0 ok, 1 error, 2 usage, 3 invalid input, 4 not found. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.data.errors import DataError, SourceNotFoundError
from trainer.data.prepare import prepare
from trainer.data.stdlib import standard_library_files
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer


def main(argv: list[str]) -> int:
    """Run `data ...` with the arguments after `data`; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        if not arguments.sources and not arguments.stdlib:
            _parser().error("name a source folder or file, or --stdlib")
    except SystemExit as done:  # argparse's way to say that it has answered already
        return int(done.code or 0)
    try:
        return _prepare(arguments)
    except SourceNotFoundError as error:
        return _fail(4, error)
    except DataError as error:
        return _fail(3, error)
    except OSError as error:
        return _fail(1, error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer data", description="Token files for training.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="turn .txt, .py, .jsonl and .jsonl.gz into token files")
    command.add_argument("sources", nargs="*", type=Path, metavar="SRC", help="folders (recursively) and files")
    command.add_argument("--out", required=True, type=Path, help="folder to make")
    command.add_argument("--tokenizer", default="byte", help="byte, or the path of a tokenizer.json (default: byte)")
    command.add_argument("--eos", default="", help="token of a tokenizer.json that ends documents")
    command.add_argument("--stdlib", action="store_true", help="add the Python standard library's sources")
    command.add_argument("--max-bytes", type=_count, default=0, metavar="N", help="take the first N bytes of text")
    command.add_argument("--skip-bad", action="store_true", help="leave out bad jsonl lines instead of stopping")
    command.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    command.add_argument("--json", action="store_true", help="print the manifest")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return int(text)


def _prepare(arguments: argparse.Namespace) -> int:
    sources = arguments.sources + (standard_library_files() if arguments.stdlib else [])
    manifest = prepare(
        sources,
        arguments.out,
        _tokenizer(arguments),
        max_bytes=arguments.max_bytes,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
    )
    print(json.dumps(manifest) if arguments.json else _summary(manifest, arguments.out))
    return 0


def _tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    if arguments.tokenizer == "byte":
        return ByteTokenizer()
    return HuggingFaceTokenizer(Path(arguments.tokenizer), arguments.eos)


def _summary(manifest: dict, out: Path) -> str:
    skipped = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in manifest["skipped"].items() if count)
    return (
        f"{out}: {manifest['tokens']:,} tokens of {manifest['documents']:,} documents in {len(manifest['files'])} "
        f"files, {manifest['dtype']}, vocabulary {manifest['vocab_size']}, unigram entropy "
        f"{manifest['unigram_entropy_nats']:.4f} nats" + (f"; skipped: {skipped}" if skipped else "")
    )


def _fail(code: int, error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
