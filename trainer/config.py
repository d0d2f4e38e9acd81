"""The trainer's configuration: one YAML file, one dataclass a section, checked before anything is built.

Imports nothing heavy, so that `python -m trainer check FILE` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelConfig:
    """`name` is one of trainer.model.presets; `overrides` replaces single fields of that preset."""

    name: str = "olmo_hybrid_1m"
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Token files in OLMo-core's layout: headerless raw arrays. Either `paths` or a `mix` file."""

    paths: list[str] = field(default_factory=list)
    mix: str = ""
    mix_tokenizer: str = ""  # replaces {TOKENIZER} in the mix file
    sequence_length: int = 256
    seed: int = 34521
    vocab_size: int = 0  # of the tokenizer; decides the files' dtype; 0: the model's
    eos_id: int = -1  # -1: the tokenizer's default; documents end at it
    pad_id: int = -1


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
