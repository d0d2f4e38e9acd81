"""The hybrid decoder, built from a ModelSpec."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.documents import segment_ids
from trainer.model.attention import Attention
from trainer.model.config import AttentionSpec, GatedDeltaNetSpec, ModelSpec, SublayerSpec, SwiGLUSpec
from trainer.model.gated_deltanet import GatedDeltaNet
from trainer.model.init import initialize
from trainer.model.loss import cross_entropy
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

    def forward(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        if self.is_pre_norm:
            return x + self._apply_op(self.norm(x), document_ids)
        return x + self.norm(self._apply_op(x, document_ids))

    def _apply_op(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        return self.op(x, document_ids) if self.is_mixer else self.op(x)


def _build_op(spec: SublayerSpec, d_model: int, norm_eps: float) -> nn.Module:
    match spec.op:
        case AttentionSpec():
            return Attention(d_model, spec.op, norm_eps)
        case GatedDeltaNetSpec():
            return GatedDeltaNet(d_model, spec.op)
        case SwiGLUSpec():
            return SwiGLU(d_model, spec.op)


class Block(nn.Module):
    """A mixer and the feed-forward networks that follow it: the unit of sharding and of recomputation."""

    def __init__(self, specs: tuple[SublayerSpec, ...], d_model: int, norm_eps: float) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(Sublayer(spec, d_model, norm_eps) for spec in specs)

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """[B, T, d_model] to the same; `document_ids` int [B, T], non-decreasing."""
        for sublayer in self.sublayers:
            x = sublayer(x, document_ids)
        return x


class HybridModel(nn.Module):
    """Embedding, blocks, final norm, untied head.

    Call `init_weights` or load a state dict before use; build under `torch.device("meta")` to allocate nothing.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(Block(specs, spec.d_model, spec.norm_eps) for specs in spec.blocks)
        self.norm = NORMS["rms"](spec.d_model, spec.norm_eps)
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Next-token logits.

        Args:
            tokens: int64 [B, T], T >= 1.
            document_ids: integers [B, T]; a document ends where the id changes, and neither attention, convolution nor
                state crosses into the next. None: each row is one document.

        Returns:
            [B, T, vocab] in the model's dtype.
        """
        ids = None if document_ids is None else segment_ids(document_ids)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, ids)
        return self.head(self.norm(x))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        denominator: float | Tensor | None = None,
        z_loss: float = 0.0,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy with z-loss of `targets` int64 [B, T] as in `trainer.model.loss.cross_entropy`; a scalar."""
        # Through __call__, not forward: FSDP's hooks hang on it.
        logits = self(tokens, document_ids)
        return cross_entropy(logits, targets, denominator=denominator, z_loss=z_loss)

    def init_weights(self, seed: int) -> None:
        """Draw every parameter from `seed` and its name; see `trainer.model.init`."""
        initialize(self, seed)
