"""`python -m trainer generate`: text from a Hugging Face folder or a run, by our own cached decoding."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch

from trainer.checkpoint.errors import CheckpointError
from trainer.config_parse import ConfigError
from trainer.data.errors import DataError
from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer
from trainer.hugging_face.errors import HuggingFaceError
from trainer.hugging_face.model import load_model
from trainer.model.generate import generate
from trainer.model.presets import BYTE_VOCAB_SIZE

EXIT_INVALID = 3


def main(argv: list[str]) -> int:
    """Run `generate ...` with the arguments after it; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        print(_continued(arguments))
    except (HuggingFaceError, CheckpointError, ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INVALID
    return 0


def _continued(arguments: argparse.Namespace) -> str:
    """The prompt and what follows it."""
    if arguments.max_new_tokens < 1 or not 0 <= arguments.temperature < math.inf:
        raise HuggingFaceError("--max-new-tokens must be at least 1, --temperature finite and not negative")
    device = torch.device(arguments.device)
    model, text = load_model(arguments.model, device, getattr(torch, arguments.dtype))
    tokenizer = _tokenizer(arguments.tokenizer, arguments.model, model.spec.vocab_size)
    prompt = tokenizer.encode(arguments.prompt).astype(np.int64)
    if not len(prompt):
        prompt = np.array([tokenizer.eos_id], dtype=np.int64)  # what stands before each document in training
    if prompt.max() >= model.spec.vocab_size:
        raise HuggingFaceError(
            f"{tokenizer.name} has tokens outside of the model's vocabulary of {model.spec.vocab_size}"
        )
    eos_id = tokenizer.eos_id if text.eos_token_id is None else text.eos_token_id
    tokens = torch.from_numpy(prompt)[None].to(device)
    out = generate(
        model, tokens, arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed, eos_id=eos_id
    )
    return tokenizer.decode(out[0].cpu().numpy())


def _tokenizer(given: Path | None, model: str, vocab_size: int) -> Tokenizer:
    if given is None and vocab_size == BYTE_VOCAB_SIZE:
        return ByteTokenizer()
    path = given or Path(model) / "tokenizer.json"
    if not path.is_file():
        raise HuggingFaceError(f"{path} doesn't exist: name the model's tokenizer.json with --tokenizer")
    return HuggingFaceTokenizer(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer generate", description="Continue a prompt.")
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="a Hugging Face folder, a run's, or a checkpoint"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser
