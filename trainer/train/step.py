"""One training step: forward, backward, vote, update."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.dataset import Batch
from trainer.model.loss import unit_gradient
from trainer.optimizer import ShardedAdamW, squared_norm
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.schedule import learning_rate
from trainer.train.hooks import Hooks
from trainer.train.state import Ballots, Kept, Memory, TrainState
from trainer.vote import Ballot, Outcome, Verdict


class DivergenceError(RuntimeError):
    """Ranks disagree on what must be equal: a corrupted computation or state."""


class PeerFaultError(RuntimeError):
    """Another rank gave the step up, in order."""


class UnstableError(RuntimeError):
    """Too many steps in a row were skipped. Every rank raises it after the same step."""


def stop_if_unstable(state: TrainState, verdict: Verdict, limit: int) -> None:
    """Raise UnstableError when the verdict's step, just finished, makes `limit` skipped steps in a row; 0: never."""
    skipped = state.skipped_in_row
    if not limit or skipped < limit:
        return
    raise UnstableError(
        f"steps {state.step - skipped + 1} to {state.step} were all skipped, {skipped} in a row "
        f"(optimizer.max_skipped_in_row: {limit}); the last: {verdict.why}. Weights and moments are those after step "
        f"{state.step - skipped}. If it is always the loss of the same ranks, suspect their GPUs; else look at the data of "
        f"these steps, and go on from an earlier checkpoint with a lower learning rate"
    )


class StepRunner:
    """Carries out the steps of one attempt on the memory's state.

    `before_update` is called before weights and moments change: a save may still be copying them.
    """

    def __init__(
        self,
        config: TrainConfig,
        gang: Gang,
        model: ShardedModel,
        memory: Memory,
        hooks: Hooks,
        before_update: Callable[[], object] = lambda: None,
    ) -> None:
        self._before_update = before_update
        self._config = config
        self._gang = gang
        self._model = model
        self._memory = memory
        self._hooks = hooks
        self._optimizer = ShardedAdamW(config.optimizer, memory.state)

    def run(self, batch: Batch, wants_save: bool) -> Verdict:
        """The step after the memory's, tried again while its verdict says so.

        Raises DivergenceError, PeerFaultError, or what a collective or the computation raised; the memory then holds
        what the next attempt needs.
        """
        step, tries = self._memory.step + 1, 1
        while True:
            verdict = self._try(step, tries, batch, wants_save)
            if verdict.finishes:
                self.apply(verdict)
                return verdict
            self._memory.kept = None
            if verdict.outcome is Outcome.DIVERGED:
                raise DivergenceError(verdict.why)
            if verdict.outcome is Outcome.FAULT:
                raise PeerFaultError(verdict.why)
            print(verdict.why + ", trying again", flush=True)
            tries += 1

    def apply(self, verdict: Verdict) -> None:
        """Finish the verdict's step from the kept gradients. If that fails midway, the state is torn, and forgotten."""
        state, kept = self._memory.state, self._memory.kept
        try:
            self._before_update()
            self._hooks.at("optimizer", verdict.step)
            if verdict.outcome is Outcome.UPDATE:
                lr = learning_rate(self._config.optimizer, verdict.step, self._config.steps)
                self._optimizer.update(kept.gradients, verdict.norm, lr)
            else:
                print(verdict.why + ", skipped", flush=True)
            state.finish(verdict)
        except BaseException:
            self._memory.forget()
            raise
        self._memory.kept = None

    def _try(self, step: int, tries: int, batch: Batch, wants_save: bool) -> Verdict:
        self._gang.check()
        torch.manual_seed(_step_seed(self._config.seed, step, self._gang.layout.rank))
        loss = self._backpropagate(step, batch)
        error = None
        try:
            gradients = self._model.gradients()
            ballot = Ballot(step, tries, squared_norm(gradients), float(loss), wants_save)
            self._memory.kept = Kept(step, gradients)
        except Exception as raised:  # too late to go alone: the others are in the vote
            error = raised
            ballot = Ballot(step, tries, 0.0, 0.0, faulty=True)
        verdict = self._vote(ballot)
        if error is not None:
            raise error
        return verdict

    def _backpropagate(self, step: int, batch: Batch) -> Tensor:
        """Mean loss over this rank's tokens, float32; the reduced gradients are in the model."""
        self._model.drop_gradients()
        self._hooks.at("forward", step)
        parts = _micro_batches(batch, self._config.micro_batch_sequences)
        total = torch.zeros((), device=self._gang.device)
        for index, (tokens, targets, documents) in enumerate(parts):
            self._model.accumulate(is_last=index == len(parts) - 1)
            loss = self._model.module.loss(
                tokens.to(self._gang.device),
                targets.to(self._gang.device),
                denominator=batch.loss_tokens,
                z_loss=self._config.optimizer.z_loss,
                document_ids=documents,  # on the host, where their boundaries can be counted without waiting
            )
            if index == 0:
                self._hooks.at("backward", step)
            loss.backward(unit_gradient(loss.device))
            total += loss.detach()
        return total

    def _vote(self, ballot: Ballot) -> Verdict:
        self._hooks.at("before_vote", ballot.step)
        gathered, work = self._gang.all_gather(torch.tensor(ballot.pack(), dtype=torch.int64))
        self._hooks.at("in_vote", ballot.step)
        self._gang.wait(work)
        unpacked = tuple(Ballot.unpack(fields) for fields in gathered.tolist())
        ballots = Ballots(ballot.step, unpacked, self._memory.state.window)
        verdict = ballots.verdict(self._gang.layout, self._config.optimizer.outlier_sigma)
        if verdict.finishes:
            self._memory.ballots = ballots
        self._hooks.at("after_vote", ballot.step)
        return verdict


def _step_seed(seed: int, step: int, rank: int) -> int:
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _micro_batches(batch: Batch, sequences: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    fields = (batch.tokens, batch.targets, batch.document_ids)
    size = sequences or len(batch.tokens)
    return list(zip(*(field.split(size) for field in fields), strict=True))
