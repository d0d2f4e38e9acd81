"""What a rank holds between attempts: plain tensors that no process group knows of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.checkpoint.digest import state_digest
from trainer.outliers import WINDOW_FIELDS, Window
from trainer.parallel.layout import Layout
from trainer.vote import Ballot, Outcome, Verdict, tally

SLOTS = ("weights", "exp_avg", "exp_avg_sq")
COUNTER_FIELDS = 4 + WINDOW_FIELDS


@dataclass
class TrainState:
    """This rank's shards after `step` steps, by parameter name; float32. The data position is `step`.

    `updates` counts the steps that changed the weights, `skipped` those that did not: updates + skipped == step. Of the
    latter `skipped_in_row` are the newest steps. `window` is what the next step's loss and norm are measured by.
    """

    step: int
    updates: int
    skipped: int
    weights: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    skipped_in_row: int = 0
    window: Window = Window()

    def finish(self, verdict: Verdict) -> None:
        """Count a step. Weights, moments and `updates` are already what they shall be after it."""
        skipped = verdict.outcome is not Outcome.UPDATE
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
        self.window = self.window.after(verdict.loss, verdict.norm)
        self.step = verdict.step

    def counters(self) -> list[int]:
        """COUNTER_FIELDS int64: all but the tensors, for another rank."""
        return [self.step, self.updates, self.skipped, self.skipped_in_row, *self.window.pack()]

    def set_counters(self, fields: Sequence[int]) -> None:
        self.step, self.updates, self.skipped, self.skipped_in_row, *window = fields
        self.window = Window.unpack(window)

    def statistics(self) -> dict:
        """All but the tensors and the step, as JSON, for a checkpoint."""
        counts = {"updates": self.updates, "skipped": self.skipped, "skipped_in_row": self.skipped_in_row}
        return {**counts, "window": self.window.to_json()}

    def set_statistics(self, value: dict) -> None:
        """Checkpoints of before the window was kept lack the last two. Raises KeyError or ValueError for other values."""
        self.updates, self.skipped = int(value["updates"]), int(value["skipped"])
        self.skipped_in_row = int(value.get("skipped_in_row", 0))
        self.window = Window.from_json(value["window"]) if "window" in value else Window()

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
    """All ballots of the last step whose vote this rank completed, and which counts; `window` is of the steps before."""

    step: int
    ballots: tuple[Ballot, ...]
    window: Window

    def verdict(self, layout: Layout, sigma: float) -> Verdict:
        return tally(self.ballots, layout, self.window, sigma)


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
