"""What a running attempt tells of its steps and checkpoints: no order follows, but ledger and budgets live on it."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery import ledger, stages
from orchestrator.recovery.draft import Draft
from orchestrator.recovery.events import CheckpointCommitted, CheckpointRejected, StepRegained, StepsCounted
from orchestrator.recovery.state import Cause, RunPhase, RunState


def on_steps_counted(draft: Draft, run: RunState, event: StepsCounted) -> None:
    if run.phase is not RunPhase.RUNNING:
        draft.say(f"Run {run.run} is {run.phase}: that step {event.step} is done is not counted.")
        return
    draft.say(f"Run {run.run} has done step {event.step}.")
    if run.ledger.cause is Cause.TRAINING:  # stalls of redone steps are part of what the fault cost
        run = replace(run, ledger=ledger.stall(run.ledger, event.checkpoint_stall_ns, event.data_stall_ns))
    advance(draft, run, event.step)


def on_step_regained(draft: Draft, run: RunState, event: StepRegained) -> None:
    if run.phase is not RunPhase.RUNNING or event.step <= run.step:
        draft.say(f"Run {run.run}: that step {event.step} is regained is no news, it has had {run.step}.")
        return
    draft.say(f"Run {run.run} is past its lost steps with step {event.step}.")
    advance(draft, run, event.step)


def advance(draft: Draft, run: RunState, step: int) -> None:
    """A step above all before is progress: time counts as training again, and recoveries so far were not in vain."""
    if step <= run.step:
        draft.put_run(run)
        return
    run = replace(run, step=step, barren_recoveries=0)
    if run.ledger.cause is Cause.REDONE_STEPS:
        run = stages.regained(replace(run, ledger=ledger.switch(run.ledger, draft.now, Cause.TRAINING)), draft.now)
    draft.put_run(run)


def on_checkpoint_committed(draft: Draft, run: RunState, event: CheckpointCommitted) -> None:
    draft.say(f"Run {run.run} has a checkpoint of step {event.step}.")
    if event.step >= run.checkpoint_step:
        draft.put_run(replace(run, checkpoint_step=event.step, checkpoint_path=event.path))


def on_checkpoint_rejected(draft: Draft, run: RunState, event: CheckpointRejected) -> None:
    draft.say(f"Run {run.run} passes over the checkpoint {event.path}: {event.why}.")
    if event.path == run.checkpoint_path:
        draft.put_run(replace(run, checkpoint_step=-1, checkpoint_path=""))
