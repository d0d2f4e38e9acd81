"""The trainer's configuration: one YAML file, one dataclass a section, checked before anything is built.

Imports nothing heavy, so that `python -m trainer check FILE` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config_parse import ConfigError, build, read_yaml

SCHEDULES = ("cosine", "linear", "wsd", "constant")
INIT_CHANGES = ("rms_norm_eps", "rope_parameters", "sliding_window")  # what no weight's shape depends on


@dataclass(frozen=True)
class ModelConfig:
    """`name` is one of trainer.model.presets; `overrides` replaces single fields of that preset."""

    name: str = "olmo_hybrid_1m"
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Token files in OLMo-core's layout: headerless raw arrays. Either `paths` or a `mix` file.

    A path may hold `*` and `**`; a folder stands for all *.npy in it, nested ones too. Both are sorted as text, and leave
    out label masks. Relative paths begin at the working directory, those inside a mix file at `mix_base`.
    """

    paths: list[str] = field(default_factory=list)
    mix: str = ""
    mix_base: str = ""  # OLMo-core's mix_base_dir; empty: the mix file's folder
    mix_tokenizer: str = ""  # replaces {TOKENIZER} in the mix file
    source_permutation_seed: int = -1  # shuffles the files before they are counted through; -1: as listed
    sequence_length: int = 256
    seed: int = 34521
    vocab_size: int = 0  # of the tokenizer; decides the files' dtype; 0: the model's
    dtype: str = ""  # uint8, uint16 or uint32; empty: the smallest that holds the vocabulary
    eos_id: int = -1  # -1: the tokenizer's default; documents end at it
    pad_id: int = -1
    # Leaves instances out of the loss in which an n-gram of at most 13 tokens comes 32 times in a row.
    mask_repetition: bool = False
    # One file of bools for each token file, false where a token is no target; empty: those found beside them.
    label_masks: list[str] = field(default_factory=list)
    packing: str = "none"  # none: contiguous windows; best_fit: whole documents packed into padded instances
    long_documents: str = "truncate"  # of packing: or "fragment", into several
    work_dir: str = ""  # where shuffled orders and packings are kept for all processes; empty: RUN_DIR/cache


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 1e-5
    schedule: str = "cosine"  # cosine, linear, wsd, constant; what follows the warm-up
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps, instead of warmup_steps
    decay_steps: int = 0  # of wsd: the last steps, in which the learning rate falls
    final_lr_ratio: float = 0.1  # of the learning rate at the last step; constant has no use for it
    outlier_sigma: float = 6.0  # skip steps whose loss or norm is so many deviations above the last ones; 0: none
    max_skipped_in_row: int = 16  # skipped steps, outliers or not finite, that end the run; 0: it never ends so


@dataclass(frozen=True)
class CheckpointConfig:
    """Permanent checkpoints each `interval_steps`, ephemeral ones, for recovery alone, each `ephemeral_interval_steps`.

    `path` is the durable tier: a folder at the same path on every node, or a URL that fsspec knows (s3://bucket/run).
    `local_path` is the local tier: a folder on each node's own disk, to which saves go first; a URL needs one.
    """

    path: str = ""  # empty: RUN_DIR/checkpoints
    local_path: str = ""  # empty: no local tier
    interval_steps: int = 50
    ephemeral_interval_steps: int = 0  # 0: none
    keep: int = 0  # permanent ones in the durable tier; 0: every one
    keep_ephemeral: int = 1  # proven ones in the durable tier
    local_keep: int = 2  # of any kind in the local tier; two, as the newest may not be whole on every node


@dataclass(frozen=True)
class EvaluationSet:
    """A held-out set: token files (`paths` or `mix`, as in DataConfig), or `texts`.

    `texts` are JSON lines {"text": ..., "label": ...}, tokenised with the evaluation's tokenizer. Results are given for the
    set and, where there are several, for each label.
    """

    name: str
    paths: list[str] = field(default_factory=list)
    mix: str = ""
    texts: list[str] = field(default_factory=list)
    label: str = ""  # empty: the mix file's, a line's own, or none
    kind: str = "perplexity"
    max_sequences: int = 0  # spread evenly over the set; 0: all
    bytes_per_token: float = 0.0  # for bits per byte; 0: counted by the tokenizer


@dataclass(frozen=True)
class EvaluationConfig:
    sets: list[EvaluationSet] = field(default_factory=list)
    interval_steps: int = 0  # 0: not between start and end
    at_start: bool = False
    at_end: bool = True
    tokenizer: str = ""  # byte, or the path of a tokenizer.json; empty: byte where the vocabulary is its own
    eos: str = ""  # token of a tokenizer.json that ends documents


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases. The API key comes from the environment alone (WANDB_API_KEY, or `wandb login`)."""

    project: str = ""  # empty: not used
    entity: str = ""
    name: str = ""  # empty: the run folder's
    mode: str = "online"  # online, offline, disabled


@dataclass(frozen=True)
class LogConfig:
    """What rank 0 writes for people. `metrics/rank-R.jsonl`, the exact record, is written whatever stands here."""

    jsonl: bool = True  # RUN_DIR/log.jsonl
    tensorboard: bool = False  # RUN_DIR/tensorboard
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str
    steps: int
    batch_tokens: int  # of one step over the whole world
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 1  # of the weights
    init_from: str = ""  # a Hugging Face folder with the first weights; empty: drawn from the seed
    # Keys of that folder's config.json that the run changes on purpose, as the long-context stage drops RoPE.
    init_changes: list[str] = field(default_factory=list)
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 1  # of torch on CPU
    micro_batch_sequences: int = 0  # sequences of one forward pass; 0: the rank's whole share
    compile: str = "auto"  # torch.compile of each block: always, never, or auto: where the device is cuda
    activation_checkpointing: str = "none"  # what is computed again in the backward pass: none, mlp, block


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
    for key, value, allowed, expected in [*_ranges(config), *_ranges_of_additions(config)]:
        if not allowed:
            yield key, f"must be {expected}, not {value!r}"
    data, batch = config.data, config.batch_tokens
    if data.sequence_length >= 2 and batch % data.sequence_length:
        yield "batch_tokens", f"{batch} is no multiple of data.sequence_length, {data.sequence_length}"
    if "://" in config.checkpoint.path and not config.checkpoint.local_path:
        yield "checkpoint.local_path", "is required where checkpoint.path is a URL: saves are written to a disk first"
    if "://" in config.checkpoint.local_path:
        yield "checkpoint.local_path", "must be a folder on the node's disk, not a URL"
    if bool(data.paths) == bool(data.mix):
        yield "data.paths", "give either data.paths or data.mix" + (", not both" if data.mix else "")
    if data.vocab_size:
        for key, token in (("data.eos_id", data.eos_id), ("data.pad_id", data.pad_id)):
            if token >= data.vocab_size:
                yield key, f"{token} is outside the vocabulary of {data.vocab_size}"
    yield from _impossible_schedule(config.optimizer, config.steps)
    yield from _impossible_evaluation(config.evaluation)


def _impossible_schedule(opt: OptimizerConfig, steps: int) -> Iterator[tuple[str, str]]:
    if opt.warmup_steps and opt.warmup_ratio:
        yield "optimizer.warmup_ratio", "give either warmup_steps or warmup_ratio, not both"
    if opt.schedule != "wsd":
        if opt.decay_steps:
            yield "optimizer.decay_steps", f"belongs to schedule wsd, not {opt.schedule}"
        return
    warm_up = opt.warmup_steps or round(opt.warmup_ratio * steps)
    if opt.decay_steps == 0:
        yield "optimizer.decay_steps", "schedule wsd needs it: over how many of the last steps the learning rate falls"
    elif warm_up + opt.decay_steps > steps:
        yield "optimizer.decay_steps", f"{warm_up} steps of warm-up and {opt.decay_steps} of decay exceed all {steps}"


def _impossible_evaluation(evaluation: EvaluationConfig) -> Iterator[tuple[str, str]]:
    names = [each.name for each in evaluation.sets]
    for index, each in enumerate(evaluation.sets):
        at = f"evaluation.sets[{index}]"
        if not each.name or names.index(each.name) < index:
            yield f"{at}.name", f"must be given and differ from the others, not {each.name!r}"
        if sum(map(bool, (each.paths, each.mix, each.texts))) != 1:
            yield at, "give one of paths, mix and texts"
        if each.kind != "perplexity":
            yield f"{at}.kind", f"must be perplexity, not {each.kind!r}"
        if each.max_sequences < 0:
            yield f"{at}.max_sequences", f"must be 0 (all) or more, not {each.max_sequences}"
        if not 0 <= each.bytes_per_token < math.inf:
            yield f"{at}.bytes_per_token", f"must be 0 (count them) or more, not {each.bytes_per_token}"


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
        ("compile", config.compile, config.compile in ("auto", "always", "never"), "auto, always or never"),
        (
            "activation_checkpointing",
            config.activation_checkpointing,
            config.activation_checkpointing in ("none", "mlp", "block"),
            "none, mlp or block",
        ),
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
        ("optimizer.schedule", opt.schedule, opt.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
        ("optimizer.warmup_steps", opt.warmup_steps, opt.warmup_steps >= 0, "0 or more"),
        ("optimizer.warmup_ratio", opt.warmup_ratio, 0 <= opt.warmup_ratio <= 1, "from 0 to 1"),
        ("optimizer.decay_steps", opt.decay_steps, opt.decay_steps >= 0, "0 or more"),
        ("optimizer.final_lr_ratio", opt.final_lr_ratio, 0 <= opt.final_lr_ratio <= 1, "from 0 to 1"),
        (
            "optimizer.outlier_sigma",
            opt.outlier_sigma,
            0 <= opt.outlier_sigma < math.inf,
            "0 (off) or more, and finite",
        ),
        ("optimizer.max_skipped_in_row", opt.max_skipped_in_row, opt.max_skipped_in_row >= 0, "0 (no end) or more"),
        ("checkpoint.interval_steps", ckpt.interval_steps, ckpt.interval_steps >= 1, "at least 1"),
        (
            "checkpoint.ephemeral_interval_steps",
            ckpt.ephemeral_interval_steps,
            ckpt.ephemeral_interval_steps >= 0,
            "0 (none) or more",
        ),
        ("checkpoint.keep", ckpt.keep, ckpt.keep >= 0, "0 (every one) or more"),
        ("checkpoint.keep_ephemeral", ckpt.keep_ephemeral, ckpt.keep_ephemeral >= 1, "at least 1"),
        ("checkpoint.local_keep", ckpt.local_keep, ckpt.local_keep >= 2, "at least 2"),
    ]


def _ranges_of_additions(config: TrainConfig) -> list[tuple[str, object, bool, str]]:
    """As `_ranges`: how data is packed, what is evaluated and logged."""
    data, interval, mode = config.data, config.evaluation.interval_steps, config.log.wandb.mode
    long_documents, source_seed = data.long_documents, data.source_permutation_seed
    return [
        ("init_changes", config.init_changes, set(config.init_changes) <= set(INIT_CHANGES), f"among {INIT_CHANGES}"),
        ("data.dtype", data.dtype, data.dtype in ("", "uint8", "uint16", "uint32"), "uint8, uint16 or uint32"),
        ("data.packing", data.packing, data.packing in ("none", "best_fit"), "none or best_fit"),
        ("data.long_documents", long_documents, long_documents in ("truncate", "fragment"), "truncate or fragment"),
        ("data.source_permutation_seed", source_seed, source_seed >= -1, "-1 or a seed"),
        ("evaluation.interval_steps", interval, interval >= 0, "0 or more"),
        ("log.wandb.mode", mode, mode in ("online", "offline", "disabled"), "online, offline or disabled"),
    ]
