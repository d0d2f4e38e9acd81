"""`python -m trainer data`: exit codes 0 ok, 1 error, 2 usage, 3 invalid input, 4 not found. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.config import load
from trainer.config_parse import ConfigError
from trainer.data.describe import describe, tokenizer_for
from trainer.data.errors import DataError, SourceNotFoundError
from trainer.data.prepare import prepare
from trainer.data.stdlib import standard_library_files
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer
from trainer.model.presets import model_config


def main(argv: list[str]) -> int:
    """Run `data ...` with the arguments after `data`; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        if arguments.command == "prepare" and not arguments.sources and not arguments.stdlib:
            _parser().error("name a source folder or file, or --stdlib")
    except SystemExit as done:  # argparse's way to say that it has answered already
        return int(done.code or 0)
    try:
        return _prepare(arguments) if arguments.command == "prepare" else _describe(arguments)
    except SourceNotFoundError as error:
        return _fail(4, error)
    except (DataError, ConfigError) as error:
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
    command = commands.add_parser("describe", help="say what the data of a configuration is")
    command.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML configuration of a run")
    command.add_argument("--first", type=_count, default=2, metavar="N", help="instances to show (default: 2)")
    command.add_argument("--tokenizer", default="", help="byte, or the path of a tokenizer.json, to show them as text")
    command.add_argument("--json", action="store_true", help="print everything as JSON")
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


def _describe(arguments: argparse.Namespace) -> int:
    if not arguments.config.is_file():
        raise SourceNotFoundError(f"{arguments.config} doesn't exist")
    config = load(arguments.config)
    try:
        vocab_size = model_config(config.model.name, config.model.overrides).vocab_size
    except ValueError as error:
        raise ConfigError("model", str(error)) from error
    tokenizer = tokenizer_for(arguments.tokenizer, config.data.vocab_size or vocab_size)
    found = describe(config, vocab_size, arguments.first, tokenizer)
    print(json.dumps(found) if arguments.json else _in_words(found))
    return 0


def _in_words(found: dict) -> str:
    lines = [
        f"{found['files']} files, {found['tokens']:,} tokens of {found['dtype']}, vocabulary {found['vocab_size']}, "
        f"EOS {found['eos_id']}, {'with' if found['label_masks'] else 'without'} label masks",
        f"{found['instances']:,} instances of {found['sequence_length']} tokens, packing {found['packing']}; "
        f"{found['batches_per_epoch']:,} batches of {found['batch_sequences']} an epoch; the run is "
        f"{found['epochs']} epochs",
        *(f"{tokens:>18,}  {label}" for label, tokens in found["tokens_by_label"].items()),
    ]
    for each in found["first"]:
        targets = f", {each['targets']} targets" if "targets" in each else ""
        lines.append(f"instance {each['instance']}{targets}: {each.get('text', each['tokens'])!r}")
    return "\n".join(lines)


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
