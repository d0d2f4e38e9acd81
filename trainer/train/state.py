"""What a rank holds between attempts: plain tensors that no process group knows of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.checkpoint.digest import state_digest
from trainer.vote import Ballot

SLOTS = ("weights", "exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """This rank's shards after `step` steps, by parameter name; float32. The data position is `step`.

    `updates` counts the steps that changed the weights, `skipped` those not finite: updates + skipped == step.
    """

    step: int
    updates: int
    skipped: int
    weights: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All shards in one map: "weights.NAME", "exp_avg.NAME", "exp_avg_sq.NAME"."""
        return {f"{slot}.{name}": tensor for slot in SLOTS for name, tensor in getattr(self, slot).items()}

    def digest(self) -> str:
        """SHA-256 of this rank's weights and moments."""
        return state_digest(self.tensors())


@dataclass
class Kept:
    """Reduced, unclipped gradients of a step that this rank has not applied."""

    step: int
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Ballots:
    """All ballots of the last step whose vote this rank completed, and which counts."""

    step: int
    ballots: tuple[Ballot, ...]


@dataclass
class Memory:
    """Everything that survives an attempt. `state` is None until it is whole."""

    state: TrainState | None = None
    kept: Kept | None = None
    ballots: Ballots | None = None

    @property
    def step(self) -> int:
        return self.state.step if self.state else 0

    @property
    def voted_step(self) -> int:
        """The last step whose vote is complete here; never before `step`."""
        return max(self.step, self.ballots.step if self.ballots and self.state else 0)

    @property
    def kept_step(self) -> int:
        """The step whose gradients are held and not yet applied; 0 for none."""
        return self.kept.step if self.kept and self.state and self.kept.step == self.state.step + 1 else 0

    def forget(self) -> None:
        self.state = self.kept = self.ballots = None
