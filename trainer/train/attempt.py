"""One attempt: form the gang, put the state in place, train to the end or until something goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainer.config import TrainConfig
from trainer.data.dataset import TokenDataset
from trainer.data.loader import Prefetcher
from trainer.evaluate.evaluator import Evaluator
from trainer.parallel.gang import Gang
from trainer.parallel.sharded import ShardedModel
from trainer.protocol.reporter import Reporter
from trainer.records.run_log import RunLog
from trainer.schedule import learning_rate
from trainer.train.checkpoints import Saver
from trainer.train.exchange import adopt, move_shards, share_ballots, zero_state
from trainer.train.from_disk import DiskRestore
from trainer.train.hooks import Hooks
from trainer.train.initial import initialize
from trainer.train.records import MetricsFile, write_final
from trainer.train.restore import Status, plan_restore
from trainer.train.state import Memory
from trainer.train.step import StepRunner, stop_if_unstable
from trainer.vote import Verdict


@dataclass(frozen=True)
class Job:
    """What stays the same over all attempts of a process."""

    config: TrainConfig
    build: Callable[[], nn.Module]
    dataset: TokenDataset
    fingerprint: dict
    saver: Saver
    evaluator: Evaluator
    log: RunLog


class Attempt:
    """Runs on the thread that trains. `take_save()` says whether the supervisor asked for a checkpoint since."""

    def __init__(
        self,
        job: Job,
        memory: Memory,
        gang: Gang,
        reporter: Reporter,
        hooks: Hooks,
        take_save: Callable[[], bool],
    ) -> None:
        self._job, self._config = job, job.config
        self._memory = memory
        self._gang = gang
        self._reporter = reporter
        self._hooks = hooks
        self._take_save = take_save
        self._prefetcher = Prefetcher(job.dataset)
        self._finished: Verdict | None = None  # a step that the recovery finished
        self._run_dir = Path(self._config.run_dir)
        self._metrics = MetricsFile(self._run_dir, gang.layout.rank, gang.attempt, self._config.batch_tokens)

    def run(self, restore: str) -> None:
        """Return when all steps are done and saved. After any error the memory holds what the next attempt needs."""
        try:
            self._reporter.phase("init")
            self._job.saver.begin(self._gang, self._reporter)
            self._gang.form()
            self._job.saver.join()
            self._reporter.phase("restore")
            model, source = self._restore(restore)
            self._train(model, source)
        finally:
            self._prefetcher.stop()
            self._metrics.close()

    def _restore(self, restore: str) -> tuple[ShardedModel, dict[str, str]]:
        """The model with its state in place; whence it came, for the phase message."""
        model = ShardedModel(self._job.build, self._gang)
        rows = self._gang.gather(Status.of(self._memory, restore).pack())
        plan = plan_restore([Status.unpack(row) for row in rows], self._gang.layout)
        if plan is None:
            self._memory.forget()
            return model, self._restore_from_disk(model)
        share_ballots(plan, self._memory, self._gang)
        rank = self._gang.layout.rank
        if rank not in plan.receivers:
            adopt(self._memory, model)
        if rank in plan.finishing:
            self._runner(model).apply(self._verdict())
        move_shards(plan, self._memory, self._gang, lambda: zero_state(model))
        self._memory.kept = None
        if plan.ballots_from is not None and rank in plan.finishing | plan.receivers:
            self._finished = self._verdict()
            self._metrics.append(self._finished)
        return model, {"source": "peers"}

    def _restore_from_disk(self, model: ShardedModel) -> dict[str, str]:
        saver = self._job.saver
        found = DiskRestore(saver.tier, saver.local, self._gang, self._reporter, model, self._job.fingerprint).run()
        if found is None:
            source = initialize(model, self._config)
            self._memory.state = zero_state(model)
            return source
        self._memory.state, path = found
        return {"source": "checkpoint", "detail": path}

    def _train(self, model: ShardedModel, source: dict[str, str]) -> None:
        saver = self._job.saver
        runner = self._runner(model)
        layout = self._gang.layout
        self._restored = {"step": self._memory.step, **source}
        self._reporter.phase("train", **self._restored)
        self._job.log.begin(self._gang.attempt, layout.rank, layout.world, self._memory.step)
        if self._finished is not None:
            self._log(self._finished)
        saver.prepare(self._memory.state, model)
        if saver.due(self._memory.step):  # the save of this step may have died with the last attempt
            saver.save(self._memory.state, model)
        self._prefetcher.start(self._memory.step, layout.rank, layout.world)
        self._gang.on_abort(self._prefetcher.stop)
        self._evaluate(model)
        while self._memory.step < self._config.steps:
            self._step(model, runner)
        self._finish()

    def _step(self, model: ShardedModel, runner: StepRunner) -> None:
        saver = self._job.saver
        begin = time.monotonic()
        batch, data_ms = self._prefetcher.next()
        verdict = runner.run(batch, self._take_save())
        self._metrics.append(verdict)
        if verdict.save or saver.due(verdict.step):
            saver.save(self._memory.state, model)
        checkpoint_ms = saver.take_stall_ms()
        saver.report()
        self._record(verdict, (time.monotonic() - begin) * 1e3, data_ms, checkpoint_ms)
        stop_if_unstable(self._memory.state, verdict, self._config.optimizer.max_skipped_in_row)
        self._hooks.at("after_step", verdict.step)
        self._evaluate(model)

    def _record(self, verdict: Verdict, step_ms: float, data_ms: float, checkpoint_ms: float) -> None:
        skipped = self._memory.state.skipped
        self._reporter.progress(
            step=verdict.step,
            tokens=verdict.step * self._config.batch_tokens,
            loss=verdict.loss,
            grad_norm=verdict.norm,
            step_ms=step_ms,
            data_ms=data_ms,
            checkpoint_ms=checkpoint_ms,
            outcome=verdict.outcome,
            skipped=skipped,
        )
        self._log(verdict, step_ms, data_ms, checkpoint_ms)

    def _log(self, verdict: Verdict, step_ms: float = 0.0, data_ms: float = 0.0, checkpoint_ms: float = 0.0) -> None:
        self._job.log.step(
            verdict,
            lr=learning_rate(self._config.optimizer, verdict.step, self._config.steps),
            skipped=self._memory.state.skipped,
            step_ms=step_ms,
            data_ms=data_ms,
            checkpoint_ms=checkpoint_ms,
        )

    def _evaluate(self, model: ShardedModel) -> None:
        """Where an evaluation is due. One that the log has already, from before a recovery, isn't made again."""
        step, evaluator = self._memory.step, self._job.evaluator
        if not evaluator.due(step) or self._gang.gather([int(self._job.log.evaluated(step))])[0] == [1]:
            return

        def say() -> None:
            self._reporter.phase("evaluate", step=step)
            self._hooks.at("evaluate", step)

        begin = time.monotonic()
        results = evaluator.run(model, self._gang, say)
        self._reporter.phase("train", **self._restored)
        self._job.log.evaluation(step, results, time.monotonic() - begin)

    def _finish(self) -> None:
        """No rank goes before the final checkpoint is committed: until then each may be needed to recover another."""
        self._reporter.phase("checkpoint")
        self._job.saver.finish(self._memory.step)
        self._gang.gather([self._memory.step])
        write_final(self._run_dir, self._gang.layout.rank, self._memory.state)
        self._job.log.end()

    def _runner(self, model: ShardedModel) -> StepRunner:
        return StepRunner(self._config, self._gang, model, self._memory, self._hooks, self._job.saver.wait_staged)

    def _verdict(self) -> Verdict:
        return self._memory.ballots.verdict(self._gang.layout, self._config.optimizer.outlier_sigma)
