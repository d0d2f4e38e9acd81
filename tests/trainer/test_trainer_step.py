"""Steps that go wrong, in a world of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import trainer.optimizer
from trainer.config import DataConfig, OptimizerConfig, TrainConfig
from trainer.data.dataset import Batch
from trainer.outliers import MIN_STEPS
from trainer.parallel.gang import Gang, GangAbortedError
from trainer.parallel.layout import Layout
from trainer.parallel.sharded import ShardedModel
from trainer.train.exchange import zero_state
from trainer.train.hooks import NoHooks
from trainer.train.state import Memory
from trainer.train.step import StepRunner, UnstableError, stop_if_unstable
from trainer.vote import Outcome

CONFIG = TrainConfig(
    run_dir="/nowhere",
    steps=10,
    batch_tokens=8,
    data=DataConfig(paths=["x"], sequence_length=4),
    optimizer=OptimizerConfig(lr=0.1),
    seed=5,
)
TOKENS = torch.arange(8).view(2, 4)
BATCH = Batch(step_index=0, tokens=TOKENS, targets=TOKENS, document_ids=torch.zeros_like(TOKENS), loss_tokens=8)


class Toy(nn.Module):
    """A linear model of which the next losses can be poisoned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.head = nn.Linear(4, 1)
        self.poisons: list[float] = []

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks[0](tokens.float())).square()

    def loss(self, tokens: Tensor, targets: Tensor, denominator: float, z_loss: float, document_ids: Tensor) -> Tensor:
        factor = self.poisons.pop(0) if self.poisons else 1.0
        return self(tokens).sum() / denominator * factor


class StepCase:
    def __init__(self, gang: Gang) -> None:
        self.model = ShardedModel(Toy, gang)
        for index, shard in enumerate(self.model.shards.values()):
            shard.copy_(torch.linspace(-1, 1 + index, shard.numel()).view_as(shard))
        self.memory = Memory(state=zero_state(self.model))
        self.runner = StepRunner(CONFIG, gang, self.model, self.memory, NoHooks())

    def poison(self, *factors: float) -> None:
        self.model.module.poisons = list(factors)


@pytest.fixture
def gang() -> Iterator[Gang]:
    alone = Gang(1, Layout(0, 1, 1), torch.device("cpu"), dist.HashStore)
    alone.form()
    yield alone
    alone.close()


def test_a_step_that_is_not_finite_is_redone(gang: Gang) -> None:
    plain, poisoned = StepCase(gang), StepCase(gang)
    expected = plain.runner.run(BATCH, wants_save=False)
    poisoned.poison(float("nan"))
    assert poisoned.runner.run(BATCH, wants_save=False).loss == expected.loss
    assert poisoned.memory.state.digest() == plain.memory.state.digest()
    assert (poisoned.memory.step, poisoned.memory.state.updates, poisoned.memory.state.skipped) == (1, 1, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_stays_so_is_skipped_and_touches_nothing(value: float, gang: Gang) -> None:
    case = StepCase(gang)
    case.runner.run(BATCH, wants_save=False)
    before = case.memory.state.digest()
    case.poison(value, value)
    verdict = case.runner.run(BATCH, wants_save=False)
    assert verdict.finishes
    assert case.memory.state.digest() == before
    assert (case.memory.step, case.memory.state.updates, case.memory.state.skipped) == (2, 1, 1)
    case.runner.run(BATCH, wants_save=False)
    assert (case.memory.step, case.memory.state.updates, case.memory.state.skipped) == (3, 2, 1)


def test_so_many_skipped_steps_in_a_row_are_the_end(gang: Gang) -> None:
    case = StepCase(gang)
    case.runner.run(BATCH, wants_save=False)
    for step in (2, 3, 4):
        case.poison(float("nan"), float("nan"))
        verdict = case.runner.run(BATCH, wants_save=False)
        stop_if_unstable(case.memory.state, verdict, limit=0)
        if step < 4:
            stop_if_unstable(case.memory.state, verdict, limit=3)
    with pytest.raises(UnstableError, match=r"steps 2 to 4 .* in a row .* loss of rank 0, .* after step 1\."):
        stop_if_unstable(case.memory.state, verdict, limit=3)
    stop_if_unstable(case.memory.state, case.runner.run(BATCH, wants_save=False), limit=3)


def test_an_outlier_touches_nothing_and_is_counted(gang: Gang) -> None:
    case = StepCase(gang)
    for _ in range(MIN_STEPS):
        case.runner.run(BATCH, wants_save=False)
    before = case.memory.state.digest()
    case.poison(1e6)
    verdict = case.runner.run(BATCH, wants_save=False)
    assert verdict.outcome is Outcome.OUTLIER
    assert case.memory.state.digest() == before
    assert (case.memory.state.updates, case.memory.state.skipped) == (MIN_STEPS, 1)
    assert case.memory.state.window.norms[-1] == verdict.norm
    assert case.memory.ballots.verdict(Layout(0, 1, 1), CONFIG.optimizer.outlier_sigma) == verdict


def test_a_huge_gradient_is_clipped_to_the_norm(gang: Gang) -> None:
    case = StepCase(gang)
    case.poison(1e6)
    verdict = case.runner.run(BATCH, wants_save=False)
    moments = [moment.double() for moment in case.memory.state.exp_avg.values()]
    norm = torch.stack([m.square().sum() for m in moments]).sum().sqrt().item() / (1 - CONFIG.optimizer.betas[0])
    assert verdict.norm > 1e3
    assert norm == pytest.approx(CONFIG.optimizer.clip_norm, rel=1e-5)


def test_an_update_that_fails_midway_leaves_no_state_behind(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    case = StepCase(gang)

    def tear(weights: list[Tensor], *args: object, **kwargs: object) -> None:
        weights[0].add_(1.0)
        raise RuntimeError("torn")

    monkeypatch.setattr(trainer.optimizer, "adamw", tear)
    with pytest.raises(RuntimeError, match="torn"):
        case.runner.run(BATCH, wants_save=False)
    assert case.memory.state is None
    assert case.memory.voted_step == 0


def test_an_error_after_the_backward_pass_is_voted_on(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    case = StepCase(gang)
    before = case.memory.state.digest()

    def fail(self: ShardedModel) -> None:
        raise MemoryError("no room for the norms")

    monkeypatch.setattr(ShardedModel, "gradients", fail)
    with pytest.raises(MemoryError):
        case.runner.run(BATCH, wants_save=False)
    assert case.memory.state.digest() == before
    assert (case.memory.step, case.memory.kept_step) == (0, 0)


def test_an_aborted_gang_carries_out_nothing_more(gang: Gang) -> None:
    case = StepCase(gang)
    gang.abort("told to")
    with pytest.raises(GangAbortedError, match="told to"):
        case.runner.run(BATCH, wants_save=False)
    with pytest.raises(GangAbortedError):
        gang.gather([1])
    assert case.memory.step == 0
