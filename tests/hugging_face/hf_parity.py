"""Our models beside transformers' with the same random weights; shared by tests and `make verify-parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from trainer.hugging_face.configuration import TextSettings, to_config
from trainer.hugging_face.names import released_names
from trainer.hugging_face.source import StoredTensor
from trainer.hugging_face.weights import StoredWeights, as_released
from trainer.model.config import ModelSpec
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

# A single token, a few, a chunk of the delta rule (64) less one, whole and one more, and two with a partial third.
LENGTHS = (1, 5, 63, 64, 65, 130)
# Without a padding token: transformers gives the embedding of one no gradient.
TEXT = TextSettings(max_position_embeddings=512, eos_token_id=256)
PACKED = (1, 5, 63, 64, 65, 70)
# The last is Olmo Hybrid 7B's layer in small: heads of 128, keys of 96, values of 192.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "olmo_hybrid_1m": ("olmo_hybrid_1m", {}),
    "olmo_hybrid_1m_nope": ("olmo_hybrid_1m", {"rope_theta": None}),
    "olmo_hybrid_15m": ("olmo_hybrid_15m", {"layers": 4}),
    "olmo3_1m": ("olmo3_1m", {"window": 16}),
}


def spec_of(name: str) -> ModelSpec:
    preset, overrides = MODELS[name]
    return model_config(preset, overrides)


def random_model(spec: ModelSpec, seed: int = 3) -> HybridModel:
    """Weights far from the initial ones, so that a norm left out or a scale forgotten shows."""
    model = HybridModel(spec)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.ndim == 2:
                parameter.mul_(5.0)
    return model


def released_state(model: HybridModel) -> dict[str, Tensor]:
    """Under the names and in the shapes of a released checkpoint's files."""
    state = model.state_dict()
    return {theirs: as_released(theirs, state[ours]) for ours, theirs in released_names(model.spec).items()}


def fused_state(model: HybridModel) -> dict[str, Tensor]:
    """As transformers 5.23 holds it in memory: one convolution for q, k and v."""
    state = released_state(model)
    for name in [name for name in state if name.endswith("q_conv1d.weight")]:
        parts = [state.pop(name.replace("q_conv1d", f"{letter}_conv1d")) for letter in "qkv"]
        state[name.replace("q_conv1d", "conv1d")] = torch.cat(parts)
    return state


def by_our_names(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Tensors by any released spelling, in memory."""
    tensors = {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, lambda begin, end, tensor=tensor: tensor[begin:end])
        for name, tensor in state.items()
    }
    weights = StoredWeights(tensors, spec)
    return {name: weights.read(name) for name in released_names(spec)}


def transformers_model(spec: ModelSpec) -> nn.Module:
    config = to_config(spec, TEXT)
    config_class = {"olmo_hybrid": transformers.OlmoHybridConfig, "olmo3": transformers.Olmo3Config}
    return transformers.AutoModelForCausalLM.from_config(config_class[config["model_type"]](**config))


def pair(spec: ModelSpec) -> tuple[HybridModel, nn.Module]:
    """Ours and transformers', with the same weights, in float32."""
    ours, theirs = random_model(spec), transformers_model(spec).float()
    theirs.load_state_dict(fused_state(ours), strict=True)
    return ours, theirs


def tokens_of(spec: ModelSpec, length: int, batch: int = 2) -> Tensor:
    return torch.randint(spec.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


# In float32, whose rounding is 6e-8 of values up to 30 (logits) and is summed over hundreds of terms in another order.
# A gradient's bound is relative to the largest of its parameter. What is wrong differs by thousands of times as much.
BOUNDS = {"logits": 1e-4, "loss": 1e-5, "gradients_relative": 1e-4}


@dataclass
class Differences:
    """The largest absolute differences so far, and that of gradients relative to the largest value of their parameter."""

    logits: float = 0.0
    loss: float = 0.0
    gradients: float = 0.0
    gradients_relative: float = 0.0
    cases: list[str] = field(default_factory=list)

    def broken(self) -> list[str]:
        """Which bounds do not hold."""
        return [name for name, bound in BOUNDS.items() if not getattr(self, name) <= bound]

    def take(self, case: str, ours: Outcome, theirs: Outcome) -> None:
        self.cases.append(case)
        self.logits = max(self.logits, distance(ours.logits, theirs.logits))
        self.loss = max(self.loss, distance(ours.loss, theirs.loss))
        for name, gradient in ours.gradients.items():
            expected = theirs.gradients[name]
            found = distance(gradient, expected)
            self.gradients = max(self.gradients, found)
            self.gradients_relative = max(self.gradients_relative, found / max(1e-3, expected.abs().max().item()))


@dataclass
class Outcome:
    logits: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def distance(left: Tensor, right: Tensor) -> float:
    """Infinite where either is not a number: no comparison may take a NaN for equal."""
    found = (left.detach() - right.detach()).abs().max().item()
    return found if found == found else float("inf")


def compare_lengths(ours: HybridModel, theirs: nn.Module, lengths: Sequence[int], differences: Differences) -> None:
    for length in lengths:
        tokens = tokens_of(ours.spec, length)
        differences.take(f"length {length}", our_outcome(ours, tokens), their_outcome(theirs, [tokens], ours.spec))


def compare_packed(ours: HybridModel, theirs: nn.Module, lengths: Sequence[int], differences: Differences) -> None:
    """Documents in one row against each of them alone in transformers."""
    documents = [tokens_of(ours.spec, length, batch=1) for length in lengths]
    ids = torch.cat([torch.full((1, length), index) for index, length in enumerate(lengths)], dim=1)
    packed = our_outcome(ours, torch.cat(documents, dim=1), ids)
    differences.take(f"packed {list(lengths)}", packed, their_outcome(theirs, documents, ours.spec))


def our_outcome(model: HybridModel, tokens: Tensor, document_ids: Tensor | None = None) -> Outcome:
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    if document_ids is not None:
        targets[:, :-1][document_ids[:, 1:] != document_ids[:, :-1]] = -100
    model.zero_grad()
    loss = model.loss(tokens, targets, document_ids=document_ids)
    loss.backward()
    with torch.no_grad():
        logits = model(tokens, document_ids)
    return Outcome(logits.flatten(0, 1), loss, {name: p.grad.clone() for name, p in model.named_parameters()})


def their_outcome(model: nn.Module, rows: list[Tensor], spec: ModelSpec) -> Outcome:
    """Each of `rows` alone, [B, T]; the loss is the mean over the targets of all."""
    model.zero_grad()
    targets = sum(row[:, 1:].numel() for row in rows)
    logits, loss = [], torch.zeros(())
    for row in rows:
        out: Any = model(row, use_cache=False)
        logits.append(out.logits.flatten(0, 1))
        predicted = out.logits[:, :-1].flatten(0, 1)
        loss = loss + F.cross_entropy(predicted, row[:, 1:].flatten(), reduction="sum") / max(1, targets)
    loss.backward()
    return Outcome(torch.cat(logits), loss, by_our_names({n: p.grad for n, p in model.named_parameters()}, spec))
