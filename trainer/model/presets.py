"""Named models, each a short description that expands to a ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, MixerSpec, ModelSpec, SublayerSpec, SwiGLUSpec

BYTE_VOCAB_SIZE = 384  # 256 bytes and specials, padded to a multiple of 128


@dataclass(frozen=True)
class Preset:
    """A stack of blocks, each a mixer and a SwiGLU. Its fields are what `overrides` may replace.

    Raises:
        ValueError: the fields do not make a model.
    """

    d_model: int
    mlp_dim: int
    heads: int  # of attention and of Gated DeltaNet alike
    layers: int
    pattern: str  # repeated over the layers: G Gated DeltaNet, A full attention, S sliding-window attention
    vocab_size: int
    rope_theta: float | None = 500_000.0  # None: NoPE
    window: int = 4096  # of S
    conv_width: int = 4
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("d_model", "mlp_dim", "heads", "layers", "vocab_size", "window", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.pattern or set(self.pattern) - set("GAS"):
            raise ValueError(f"pattern must consist of the letters G, A and S, got {self.pattern!r}")
        if self.rope_theta is not None and self.rope_theta <= 0:
            raise ValueError(f"rope_theta must be positive, or null for no position embedding, got {self.rope_theta}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps must be positive, got {self.norm_eps}")
        if self.d_model % (4 * self.heads):
            raise ValueError(f"d_model must be a multiple of 4 x heads = {4 * self.heads}, got {self.d_model}")

    def spec(self) -> ModelSpec:
        """Expand: Gated DeltaNet blocks are pre-norm, attention blocks post-norm as in Olmo 2 and 3.

        That mixture is what transformers' OlmoHybrid builds; OLMo-core's current script would make both post-norm.
        """
        sublayers: list[SublayerSpec] = []
        for layer in range(self.layers):
            letter = self.pattern[layer % len(self.pattern)]
            placement = "pre" if letter == "G" else "post"
            sublayers.append(SublayerSpec(self._mixer(letter), placement))
            sublayers.append(SublayerSpec(SwiGLUSpec(self.mlp_dim), placement))
        return ModelSpec(self.d_model, self.vocab_size, tuple(sublayers), self.norm_eps)

    def _mixer(self, letter: str) -> MixerSpec:
        width = self.d_model // self.heads
        if letter == "G":
            key_dim = 3 * width // 4
            return GatedDeltaNetSpec(self.heads, key_dim, value_dim=2 * key_dim, conv_width=self.conv_width)
        return AttentionSpec(self.heads, width, self.rope_theta, self.window if letter == "S" else None)


# The ladder: parameters are counted whole, embedding and head included. Heads are 128 wide as in the 7B models (64 at 1M).
# The byte vocabulary stands where the real one would be more than half of the model, so up to 190M; override
# `vocab_size` to have it anyway. At one rung both families have the same width and depth, and SwiGLUs so wide that their
# counts differ by less than 1%.
PRESETS: dict[str, Preset] = {
    "olmo_hybrid_7b": Preset(d_model=3840, mlp_dim=11008, heads=30, layers=32, pattern="GGGA", vocab_size=100352),
    "olmo_hybrid_1b": Preset(d_model=1536, mlp_dim=4736, heads=12, layers=20, pattern="GGGA", vocab_size=100352),
    "olmo_hybrid_600m": Preset(d_model=1280, mlp_dim=3200, heads=10, layers=16, pattern="GGGA", vocab_size=100352),
    "olmo_hybrid_190m": Preset(d_model=768, mlp_dim=2048, heads=6, layers=24, pattern="GGGA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo_hybrid_60m": Preset(d_model=512, mlp_dim=1536, heads=4, layers=16, pattern="GGGA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo_hybrid_15m": Preset(d_model=256, mlp_dim=736, heads=2, layers=16, pattern="GGGA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo_hybrid_1m": Preset(d_model=128, mlp_dim=352, heads=2, layers=4, pattern="GGGA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo_hybrid_tiny": Preset(d_model=32, mlp_dim=96, heads=2, layers=4, pattern="GGGA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo3_7b": Preset(d_model=4096, mlp_dim=11008, heads=32, layers=32, pattern="SSSA", vocab_size=100352),
    "olmo3_1b": Preset(d_model=1536, mlp_dim=5504, heads=12, layers=20, pattern="SSSA", vocab_size=100352),
    "olmo3_600m": Preset(d_model=1280, mlp_dim=3840, heads=10, layers=16, pattern="SSSA", vocab_size=100352),
    "olmo3_190m": Preset(d_model=768, mlp_dim=2432, heads=6, layers=24, pattern="SSSA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo3_60m": Preset(d_model=512, mlp_dim=1792, heads=4, layers=16, pattern="SSSA", vocab_size=BYTE_VOCAB_SIZE),
    "olmo3_15m": Preset(d_model=256, mlp_dim=864, heads=2, layers=16, pattern="SSSA", vocab_size=BYTE_VOCAB_SIZE),
    # Sequences are 256 tokens here, so a window of 4096 would never slide; half of a sequence, as in the 7B.
    "olmo3_1m": Preset(
        d_model=128, mlp_dim=416, heads=2, layers=4, pattern="SSSA", vocab_size=BYTE_VOCAB_SIZE, window=128
    ),
}  # fmt: skip


def model_config(name: str, overrides: Mapping[str, object] | None = None) -> ModelSpec:
    """The preset `name` with single fields of its description replaced.

    Raises:
        ValueError: no such preset or field, or a value that does not fit it; the message lists what there is.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}; models are: {', '.join(PRESETS)}")
    overrides = dict(overrides or {})
    _check_overrides(name, overrides)
    try:
        return replace(PRESETS[name], **overrides).spec()
    except ValueError as error:
        raise ValueError(f"model {name}: {error}") from None


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
}


def _check_overrides(name: str, overrides: Mapping[str, object]) -> None:
    types = {field.name: str(field.type) for field in fields(Preset)}
    for key, value in overrides.items():
        if key not in types:
            raise ValueError(f"model {name} has no field {key!r}; fields are: {', '.join(types)}")
        if isinstance(value, bool) or not isinstance(value, _ACCEPTED[types[key]]):
            wanted = types[key].replace("None", "null")
            raise ValueError(f"model {name}: {key} must be {wanted}, got {value!r}")
