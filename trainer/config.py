"""The trainer's configuration: one YAML file, one dataclass a section, checked before anything is built.

Imports nothing heavy, so that `python -m trainer check FILE` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config_parse import ConfigError, build, read_yaml


@dataclass(frozen=True)
class ModelConfig:
    """`name` is one of trainer.model.presets; `overrides` replaces single fields of that preset."""

    name: str = "olmo_hybrid_1m"
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Token files in OLMo-core's layout: headerless raw arrays. Either `paths` or a `mix` file.

    A folder in `paths` stands for its *.npy files, sorted. Relative paths begin at the working directory, those inside a
    mix file at that file.
    """

    paths: list[str] = field(default_factory=list)
    mix: str = ""
    mix_tokenizer: str = ""  # replaces {TOKENIZER} in the mix file
    sequence_length: int = 256
    seed: int = 34521
    vocab_size: int = 0  # of the tokenizer; decides the files' dtype; 0: the model's
    eos_id: int = -1  # -1: the tokenizer's default; documents end at it
    pad_id: int = -1
    # Leaves instances out of the loss in which an n-gram of at most 13 tokens comes 32 times in a row.
    mask_repetition: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 1e-5
    warmup_steps: int = 0
    final_lr_ratio: float = 0.1  # of a cosine that ends at the last step


@dataclass(frozen=True)
class CheckpointConfig:
    path: str = ""  # empty: RUN_DIR/checkpoints
    interval_steps: int = 50
    keep: int = 0  # 0: every one


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str
    steps: int
    batch_tokens: int  # of one step over the whole world
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 1  # of the weights
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 1  # of torch on CPU
    micro_batch_sequences: int = 0  # sequences of one forward pass; 0: the rank's whole share


def load(path: str | Path) -> TrainConfig:
    """The configuration in a YAML file. Raises ConfigError for its first problem."""
    config, problems = _read(Path(path))
    if config is None or problems:
        raise problems[0]
    return config


def check(path: str | Path) -> list[dict[str, str]]:
    """All problems of a YAML file as {"key": "data.sequence_length", "message": ...}; files it names aren't opened."""
    return [_plain(problem) for problem in _read(Path(path))[1]]


def check_layout(config: TrainConfig, world_size: int) -> list[dict[str, str]]:
    """Problems of training this configuration with so many ranks, as those of `check`."""
    sequences = config.batch_tokens // config.data.sequence_length
    if world_size < 1:
        return [_plain(ConfigError("", f"a world of {world_size} ranks can't train"))]
    if sequences % world_size:
        fits = max(n for n in range(1, world_size) if sequences % n == 0)
        message = f"{sequences} sequences a batch can't be shared evenly by {world_size} ranks; {fits} can"
        return [_plain(ConfigError("batch_tokens", message))]
    share, micro = sequences // world_size, config.micro_batch_sequences
    if micro and share % micro:
        return [_plain(ConfigError("micro_batch_sequences", f"{micro} doesn't divide a rank's {share} sequences"))]
    return []


def _read(path: Path) -> tuple[TrainConfig | None, list[ConfigError]]:
    problems: list[ConfigError] = []
    try:
        config = build(TrainConfig, read_yaml(path), "", problems)
    except ConfigError as error:
        return None, [error]
    if config is not None:
        problems += [ConfigError(key, message) for key, message in _impossible(config)]
    return config, problems


def _plain(problem: ConfigError) -> dict[str, str]:
    return {"key": problem.key_path, "message": problem.message}


def _impossible(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """(key path, message) of each value out of its range, and of values that contradict one another."""
    for key, value, allowed, expected in _ranges(config):
        if not allowed:
            yield key, f"must be {expected}, not {value!r}"
    data, batch = config.data, config.batch_tokens
    if data.sequence_length >= 2 and batch % data.sequence_length:
        yield "batch_tokens", f"{batch} is no multiple of data.sequence_length, {data.sequence_length}"
    if bool(data.paths) == bool(data.mix):
        yield "data.paths", "give either data.paths or data.mix" + (", not both" if data.mix else "")
    if data.vocab_size:
        for key, token in (("data.eos_id", data.eos_id), ("data.pad_id", data.pad_id)):
            if token >= data.vocab_size:
                yield key, f"{token} is outside the vocabulary of {data.vocab_size}"


def _ranges(config: TrainConfig) -> list[tuple[str, object, bool, str]]:
    """(key path, value, whether it is allowed, what is) of each single value. NaN fails every comparison."""
    data, opt, ckpt = config.data, config.optimizer, config.checkpoint
    return [
        ("run_dir", config.run_dir, bool(config.run_dir), "a folder"),
        ("steps", config.steps, config.steps >= 1, "at least 1"),
        ("batch_tokens", config.batch_tokens, config.batch_tokens >= 1, "at least 1"),
        ("seed", config.seed, 0 <= config.seed < 2**63, "from 0 to 2^63 - 1"),
        ("device", config.device, config.device in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
        ("threads", config.threads, config.threads >= 1, "at least 1"),
        ("micro_batch_sequences", config.micro_batch_sequences, config.micro_batch_sequences >= 0, "0 or more"),
        ("model.name", config.model.name, bool(config.model.name), "the name of a preset"),
        ("data.sequence_length", data.sequence_length, data.sequence_length >= 2, "at least 2"),
        ("data.seed", data.seed, 0 <= data.seed < 2**63, "from 0 to 2^63 - 1"),
        ("data.vocab_size", data.vocab_size, 0 <= data.vocab_size <= 2**32, "from 0 to 2^32"),
        ("data.eos_id", data.eos_id, data.eos_id >= -1, "-1 or a token"),
        ("data.pad_id", data.pad_id, data.pad_id >= -1, "-1 or a token"),
        ("optimizer.lr", opt.lr, 0 < opt.lr < math.inf, "above 0 and finite"),
        ("optimizer.betas", opt.betas, all(0 <= beta < 1 for beta in opt.betas), "two numbers from 0 to below 1"),
        ("optimizer.eps", opt.eps, 0 < opt.eps < math.inf, "above 0 and finite"),
        ("optimizer.weight_decay", opt.weight_decay, 0 <= opt.weight_decay < math.inf, "0 or more, and finite"),
        ("optimizer.clip_norm", opt.clip_norm, 0 < opt.clip_norm < math.inf, "above 0 and finite"),
        ("optimizer.z_loss", opt.z_loss, 0 <= opt.z_loss < math.inf, "0 or more, and finite"),
        ("optimizer.warmup_steps", opt.warmup_steps, opt.warmup_steps >= 0, "0 or more"),
        ("optimizer.final_lr_ratio", opt.final_lr_ratio, 0 <= opt.final_lr_ratio <= 1, "from 0 to 1"),
        ("checkpoint.interval_steps", ckpt.interval_steps, ckpt.interval_steps >= 1, "at least 1"),
        ("checkpoint.keep", ckpt.keep, ckpt.keep >= 0, "0 (every one) or more"),
    ]
