"""`python -m trainer export` and `python -m trainer import`: weights to and from Hugging Face folders."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from trainer import config as trainer_config
from trainer.checkpoint.errors import CheckpointError
from trainer.config_parse import ConfigError
from trainer.hugging_face.byte_tokenizer import byte_tokenizer_files
from trainer.hugging_face.configuration import CONFIG, TextSettings, check_config, from_config, read_json, text_settings
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.folder import DEFAULT_SHARD_BYTES, FolderSettings, write_folder
from trainer.hugging_face.model import read_all
from trainer.hugging_face.trained import open_trained, spec_of, special_ids
from trainer.hugging_face.weights import StoredWeights
from trainer.model.config import ModelSpec
from trainer.model.count import parameter_shapes
from trainer.model.presets import BYTE_VOCAB_SIZE

EXIT_INVALID = 3
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja",
)  # fmt: skip


def main(command: str, argv: list[str]) -> int:
    """Run `export ...` or `import ...` with the arguments after it; returns the exit code."""
    parser, act = (_export_parser(), _export) if command == "export" else (_import_parser(), _import)
    arguments = parser.parse_args(argv)
    try:
        act(arguments)
    except (HuggingFaceError, CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INVALID
    return 0


def _export(arguments: argparse.Namespace) -> None:
    config = trainer_config.load(arguments.config) if arguments.config else None
    trained = open_trained(arguments.source, config)
    settings = FolderSettings(
        dtypes=dict.fromkeys(parameter_shapes(trained.spec), _DTYPES[arguments.dtype]),
        text=_text(trained.text, arguments),
        shard_bytes=arguments.max_shard_size,
        overwrite=arguments.overwrite,
        extra=_tokenizer(arguments.tokenizer, trained.spec),
    )
    files = write_folder(arguments.out, trained.spec, trained.read, settings)
    print(f"{arguments.out}: {len(files)} files with the weights of {trained}")


def _import(arguments: argparse.Namespace) -> None:
    source: Path = arguments.source
    given = _given_model(arguments)
    found = read_json(source / CONFIG) if (source / CONFIG).is_file() else None
    spec = _imported_spec(source, found, given)
    weights = StoredWeights.open(source, spec)
    text = text_settings(found) if found else TextSettings(0, *special_ids(spec.vocab_size))
    dtype = _DTYPES.get(arguments.dtype)
    settings = FolderSettings(
        dtypes={name: dtype or weights.dtype(name) for name in parameter_shapes(spec)},
        text=_text(text, arguments),
        shard_bytes=arguments.max_shard_size,
        overwrite=arguments.overwrite,
        extra=_tokenizer(arguments.tokenizer, spec, source),
    )
    files = write_folder(arguments.out, spec, read_all(weights), settings)
    print(f"{arguments.out}: {len(files)} files; a run begins from them with init_from: {arguments.out}")


def _given_model(arguments: argparse.Namespace) -> ModelSpec | None:
    if arguments.config:
        return spec_of(trainer_config.load(arguments.config).model)
    return spec_of(trainer_config.ModelConfig(arguments.model)) if arguments.model else None


def _imported_spec(source: Path, found: Mapping | None, given: ModelSpec | None) -> ModelSpec:
    if found is None and given is None:
        raise HuggingFaceError(f"{source} has no {CONFIG}: name its model with --model or --config")
    if found is None:
        return given
    if given is not None:
        check_config(source, given, ())
    return from_config(found)


def _text(found: TextSettings, arguments: argparse.Namespace) -> TextSettings:
    given = {
        "max_position_embeddings": arguments.max_positions,
        "eos_token_id": arguments.eos_id,
        "pad_token_id": arguments.pad_id,
    }
    text = replace(found, **{name: value for name, value in given.items() if value is not None})
    if text.max_position_embeddings < 1:
        raise HuggingFaceError("how long may a text be? Say it in tokens with --max-positions")
    return text


def _tokenizer(given: Path | None, spec: ModelSpec, source: Path | None = None) -> dict[str, bytes]:
    """Files of a tokenizer to put beside the weights: those given, those beside the source, or the byte tokenizer's.

    Raises HuggingFaceError.
    """
    where = given or source
    if where is not None and where.is_dir():
        paths = [where / name for name in _TOKENIZER_FILES if (where / name).is_file()]
    else:
        paths = [given] if given else []
    if not paths:
        if given:
            raise HuggingFaceError(f"{given} holds no tokenizer.json")
        return byte_tokenizer_files() if spec.vocab_size == BYTE_VOCAB_SIZE else {}
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise HuggingFaceError(f"{error.filename} can't be read: {error.strerror}") from error


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer export", description="Write a checkpoint's weights as a Hugging Face folder."
    )
    parser.add_argument("source", metavar="SOURCE", help="a run's folder, the place of its checkpoints, or one of them")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the run's configuration, for older checkpoints")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16")
    _add_output(parser)
    return parser


def _import_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer import",
        description="Check weights of any known spelling and write them as a Hugging Face folder with released names, "
        "from which a run begins with init_from.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="a Hugging Face folder, or a file with OLMo-core's names"
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", metavar="NAME", help="the preset that a source without config.json holds")
    model.add_argument("--config", type=Path, metavar="FILE", help="a trainer's configuration that names the model")
    parser.add_argument("--dtype", choices=["keep", *_DTYPES], default="keep")
    _add_output(parser)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--max-shard-size", type=_size, default=DEFAULT_SHARD_BYTES, metavar="SIZE", help="as in 500MB; default 5GB"
    )
    parser.add_argument("--max-positions", type=int, metavar="N", help="longest text; default: the training sequence")
    parser.add_argument("--eos-id", type=int, metavar="ID", help="token that ends a text")
    parser.add_argument("--pad-id", type=int, metavar="ID", help="token that pads")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="a tokenizer.json, or a folder with one, to add")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")


def _size(text: str) -> int:
    found = re.fullmatch(r"([1-9]\d*)\s*([KMG]?B?)", text.strip().upper())
    if not found or found.group(2) not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB or 500MB")
    return int(found.group(1)) * _UNITS[found.group(2)]
