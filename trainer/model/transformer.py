"""The hybrid decoder, built from a ModelSpec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.attention import Attention
from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.context import Context, block_contexts
from trainer.model.execution import Execution, compiled, recomputed
from trainer.model.gated_deltanet import GatedDeltaNet
from trainer.model.init import initialize
from trainer.model.loss import linear_cross_entropy
from trainer.model.mlp import SwiGLU
from trainer.model.norms import NORMS


class Sublayer(nn.Module):
    """A mixer or a feed-forward network with its norm and its residual connection."""

    def __init__(self, spec: SublayerSpec, d_model: int, norm_eps: float) -> None:
        super().__init__()
        self.is_mixer = spec.is_mixer
        self.is_pre_norm = spec.norm_placement == "pre"
        self.op = _build_op(spec, d_model, norm_eps)
        self.norm = NORMS[spec.norm_kind](d_model, norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.is_pre_norm:
            return x + self._apply_op(self.norm(x), context)
        return x + self.norm(self._apply_op(x, context))

    def _apply_op(self, x: Tensor, context: Context) -> Tensor:
        return self.op(x, context) if self.is_mixer else self.op(x)


def _build_op(spec: SublayerSpec, d_model: int, norm_eps: float) -> nn.Module:
    match spec.op:
        case AttentionSpec():
            return Attention(d_model, spec.op, norm_eps)
        case GatedDeltaNetSpec():
            return GatedDeltaNet(d_model, spec.op)
        case SwiGLUSpec():
            return SwiGLU(d_model, spec.op)


class Block(nn.Module):
    """A mixer and the feed-forward networks that follow it: the unit of sharding, compilation and recomputation."""

    def __init__(
        self, specs: tuple[SublayerSpec, ...], d_model: int, norm_eps: float, execution: Execution = Execution()
    ) -> None:
        super().__init__()
        self.execution = execution
        self.sublayers = nn.ModuleList(Sublayer(spec, d_model, norm_eps) for spec in specs)

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """[B, T, d_model] to the same."""
        run = compiled(run_block) if self.execution.compiles(x) else run_block
        if self.execution.activation_checkpointing == "block" and torch.is_grad_enabled():
            return recomputed(run, self, x, context)
        return run(self, x, context)


def run_block(block: Block, x: Tensor, context: Context) -> Tensor:
    """What a block computes. Apart from Block.forward, which FSDP's hooks surround, so that it compiles to one graph."""
    recomputes_mlp = block.execution.activation_checkpointing == "mlp" and torch.is_grad_enabled()
    for sublayer in block.sublayers:
        x = recomputed(sublayer, x, context) if recomputes_mlp and not sublayer.is_mixer else sublayer(x, context)
    return x


class Head(nn.Linear):
    """Logits, or the loss without them."""

    def forward(
        self, x: Tensor, targets: Tensor | None = None, denominator: float | None = None, z_loss: float = 0.0
    ) -> Tensor:
        if targets is None:
            return super().forward(x)
        return linear_cross_entropy(x, self.weight, targets, denominator=denominator, z_loss=z_loss)


class HybridModel(nn.Module):
    """Embedding, blocks, final norm, untied head.

    Call `init_weights` or load a state dict before use; build under `torch.device("meta")` to allocate nothing.
    """

    def __init__(self, spec: ModelSpec, execution: Execution = Execution()) -> None:
        super().__init__()
        self.spec = spec
        self.execution = execution
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(Block(specs, spec.d_model, spec.norm_eps, execution) for specs in spec.blocks)
        self.norm = NORMS["rms"](spec.d_model, spec.norm_eps)
        self.head = Head(spec.d_model, spec.vocab_size, bias=False)

    @property
    def sharding_units(self) -> list[nn.Module]:
        """What is gathered and reduced as one, beside the rest."""
        return [*self.blocks, self.head]

    def forward(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        *,
        contexts: list[Context] | None = None,
        targets: Tensor | None = None,
        denominator: float | None = None,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Next-token logits; or the loss, as `loss` says, if there are targets.

        Args:
            tokens: int64 [B, T], T >= 1.
            document_ids: integers [B, T]; a document ends where the id changes, and neither attention, convolution nor
                state crosses into the next. None: each row is one document.
            contexts: what has been made of the document ids, one for each block.

        Returns:
            [B, T, vocab] in the model's dtype, or a scalar.
        """
        contexts = block_contexts(self.spec, tokens, document_ids) if contexts is None else contexts
        x = self.embedding(tokens)
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        norm = compiled(_apply) if self.execution.compiles(x) else _apply
        return self.head(norm(self.norm, x), targets, denominator, z_loss)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        denominator: float | None = None,
        z_loss: float = 0.0,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy with z-loss of `targets` int64 [B, T] as in `trainer.model.loss.linear_cross_entropy`; a scalar.

        `document_ids` are best given on the host: see `block_contexts`.
        """
        # Through __call__, not forward: FSDP's hooks hang on it.
        contexts = block_contexts(self.spec, tokens, document_ids)
        return self(tokens, contexts=contexts, targets=targets, denominator=denominator, z_loss=z_loss)

    def init_weights(self, seed: int) -> None:
        """Draw every parameter from `seed` and its name; see `trainer.model.init`."""
        initialize(self, seed)


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)
