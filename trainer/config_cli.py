"""`python -m trainer check`: is this configuration fit to train? Exit codes 0 yes, 2 usage, 3 no, 4 no such file.

Imports no torch, so that the answer comes at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.checkpoint.urls import StorageError, open_url
from trainer.config import TrainConfig, check, check_layout, load
from trainer.data.errors import DataError
from trainer.data.token_files import open_token_files
from trainer.evaluate.sets import open_sets
from trainer.hugging_face.configuration import check_config
from trainer.hugging_face.errors import HuggingFaceError
from trainer.model.presets import model_config


def main(argv: list[str]) -> int:
    """Run `check ...` with the arguments after `check`; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as done:  # argparse's way to say that it has answered already
        return int(done.code or 0)
    if not arguments.file.is_file():
        print(f"error: {arguments.file} doesn't exist", file=sys.stderr)
        return 4
    problems = problems_of(arguments.file, arguments.world_size)
    if arguments.json:
        print(json.dumps(problems))
    else:
        print("\n".join(f"{p['key'] or arguments.file}: {p['message']}" for p in problems) or f"{arguments.file}: good")
    return 3 if problems else 0


def problems_of(path: Path, world_size: int = 0) -> list[dict[str, str]]:
    """All problems of the file, of its model and token files, and (world_size > 0) of its layout."""
    problems = check(path)
    if problems:
        return problems
    config = load(path)
    problems = [*_model_and_data(config), *_storage(config), *_first_weights(config)]
    return [*problems, *(check_layout(config, world_size) if world_size else [])]


def _storage(config: TrainConfig) -> list[dict[str, str]]:
    try:
        if "://" in config.checkpoint.path:
            open_url(config.checkpoint.path)
    except StorageError as error:
        return [{"key": "checkpoint.path", "message": str(error)}]
    return []


def _first_weights(config: TrainConfig) -> list[dict[str, str]]:
    """Of the folder's config.json; its weights are read when a run begins."""
    if not config.init_from:
        return []
    try:
        spec = model_config(config.model.name, config.model.overrides)
        check_config(Path(config.init_from), spec, tuple(config.init_changes))
    except HuggingFaceError as error:
        return [{"key": "init_from", "message": str(error)}]
    except ValueError:  # no such model, which is a problem of its own
        pass
    return []


def _model_and_data(config: TrainConfig) -> list[dict[str, str]]:
    try:
        vocab_size = model_config(config.model.name, config.model.overrides).vocab_size
    except ValueError as error:
        return [{"key": "model", "message": str(error)}]
    try:
        instances = open_token_files(config.data, vocab_size).instances
    except (DataError, OSError) as error:
        return [{"key": "data.mix" if config.data.mix else "data.paths", "message": str(error)}]
    needed = config.batch_tokens // config.data.sequence_length
    if instances < needed and config.data.packing == "none":  # packed ones are known once all tokens were read
        message = f"the token files hold {instances} sequences of {config.data.sequence_length}, a batch is {needed}"
        return [{"key": "batch_tokens", "message": message}]
    try:
        open_sets(config.evaluation, config.data, vocab_size)
    except (DataError, OSError) as error:
        return [{"key": "evaluation", "message": str(error)}]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer check", description="Check a training configuration.")
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML configuration")
    parser.add_argument("--world-size", type=int, default=0, metavar="N", help="check the layout for N ranks, too")
    parser.add_argument("--json", action="store_true", help='print the problems as a JSON list of {"key", "message"}')
    return parser
