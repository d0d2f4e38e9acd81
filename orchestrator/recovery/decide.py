"""The one function that changes state: pure, without clock, randomness or I/O.

    decide(state, event, policy) -> Decision(state, commands, reason)

The same events give the same state, always. Events may arrive twice, late, or for runs and nodes that are gone; then
the decision is to do nothing, and its reason says why. An event costs the same with ten nodes and ten thousand; only
placing a run looks at the free nodes, and only the start of a daemon at everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from orchestrator.recovery import deadlines, events, failure, fleet, launch, progress, run_machine, stages, workers
from orchestrator.recovery.draft import TERMINAL, Draft
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, Hold, RecoveryPhase, RunPhase, RunState, State


def initial_state(policy: Policy) -> State:
    return State(policy=policy)


def next_deadline(state: State) -> int | None:
    """When DeadlinePassed is due, in ns of the controller's clock; None while nothing is awaited."""
    top = deadlines.top(state.deadlines)
    return None if top is None else top[0]


def decide(state: State, event: events.Event, policy: Policy) -> Decision:
    """What follows from `event`. `policy` rules this decision; DaemonStarted carries the one for those that follow.

    Raises TypeError for an event of unknown type, IllegalTransitionError (a bug) for a step that no table allows.
    """
    draft = Draft(state, policy, event.at_ns)
    kind = type(event)
    if kind in SYSTEM_EVENTS:
        SYSTEM_EVENTS[kind](draft, event)
    elif kind in NODE_EVENTS:
        _of_node(draft, event)
    elif kind in ATTEMPT_EVENTS:
        _of_attempt(draft, event)
    else:
        raise TypeError(f"decide knows no event {kind.__name__}")
    while draft.serve_queue:
        draft.serve_queue = False
        launch.serve_queue(draft)
    return draft.finish()


def _of_node(draft: Draft, event: Any) -> None:
    if event.node in draft.nodes:
        NODE_EVENTS[type(event)](draft, event)
    else:
        draft.say(f"Node {event.node} is not known.")


def _of_attempt(draft: Draft, event: Any) -> None:
    """Fence: only events of the run's present attempt count."""
    run = draft.runs.get(event.run)
    name = event.__struct_config__.tag
    if run is None:
        draft.say(f"Run {event.run} is not known: {name} changes nothing.")
    elif run.phase in TERMINAL:
        draft.say(f"Run {event.run} is {run.phase}: {name} changes nothing.")
    elif event.attempt != run.attempt:
        if not (isinstance(event, events.WorkerExited) and workers.late_exit(draft, run, event)):
            draft.say(
                f"Run {event.run} is in attempt {run.attempt}: {name} of attempt {event.attempt} changes nothing."
            )
    elif run.phase in (RunPhase.PENDING, RunPhase.CHECKING):
        draft.say(f"Run {event.run} is {run.phase} and has started nothing: {name} changes nothing.")
    else:
        ATTEMPT_EVENTS[type(event)](draft, run, event)


def _on_daemon_started(draft: Draft, event: events.DaemonStarted) -> None:
    """Orders may be lost with the last daemon: they are sent again, and their deadlines begin anew."""
    if event.epoch <= draft.epoch:
        draft.say(f"A daemon of epoch {event.epoch} is not newer than epoch {draft.epoch}.")
        return
    draft.adopt(event.policy, event.epoch)
    draft.say(f"A daemon takes over with epoch {event.epoch}.")
    for name in sorted(draft.runs):
        run = draft.runs[name]
        if run.phase in TERMINAL:
            continue
        sent = stages.reissue(draft, _with_new_deadline(draft, run))
        if sent:
            draft.say(f"Run {name}: the orders of its present stage are sent again.")
    fleet.probe_again(draft)
    draft.serve_queue = True


def _with_new_deadline(draft: Draft, run: RunState) -> RunState:
    if not run.deadline_ns or run.hold is Hold.BACKOFF or run.phase is RunPhase.RUNNING:
        return run
    if run.phase is RunPhase.CHECKING:
        due_ns = draft.now + run_machine.seconds(draft.policy.checking_deadline_s)
    elif run.phase is RunPhase.STARTING and run.stage is not RecoveryPhase.ISOLATE:
        due_ns = draft.now + run_machine.seconds(draft.policy.start_deadline_s)
    else:
        assert run.stage is not None
        due_ns = run_machine.deadline_ns(draft, run, run.stage)
    return draft.put_run(replace(run, deadline_ns=due_ns))


def _on_deadline_passed(draft: Draft, event: events.DeadlinePassed) -> None:
    due = False
    draft.prune_deadlines()
    while (key := deadlines.top(draft.deadlines)) is not None and key[0] <= draft.now:
        due = True
        run = draft.put_run(replace(draft.runs[key[1]], deadline_ns=0))
        if run.phase is RunPhase.CHECKING:
            launch.silent(draft, run)
        else:
            failure.overdue(draft, run, event)
        draft.prune_deadlines()
    if not due:
        draft.say("No deadline has passed.")


def _on_cancelled(draft: Draft, event: events.RunCancelled) -> None:
    run = draft.runs.get(event.run)
    if run is None:
        draft.say(f"Run {event.run} is not known.")
    elif run.phase in TERMINAL:
        draft.say(f"Run {event.run} is {run.phase} already.")
    else:
        why = f"{event.who} cancelled it" + (f": {event.why}" if event.why else "")
        run_machine.end(draft, run, RunPhase.CANCELLED, why)


def _on_command_failed(draft: Draft, event: events.CommandFailed) -> None:
    """A probe that could not be made is one that failed."""
    run = draft.runs.get(event.run)
    if event.command == "probe_node":
        finding = events.Finding(
            check="probe", cause="probe_failed", severity="error", action="inspect", sentence=f"no probe: {event.error}"
        )
        purpose = "preflight" if event.run else "probation"
        _of_node(
            draft,
            events.NodeProbed(
                node=event.node,
                purpose=purpose,
                ok=False,
                run=event.run,
                attempt=event.attempt,
                findings=(finding,),
            ),
        )
    elif run is None or run.phase in TERMINAL or event.attempt != run.attempt:
        draft.say(f"{event.command} failed on {event.node} ({event.error}); nothing waits for it.")
    else:
        workers.on_command_failed(draft, run, event)


def _on_finished(draft: Draft, run: RunState, event: events.RunFinished) -> None:
    if run.stage is RecoveryPhase.PLACE:
        draft.say(f"Run {run.run}: nobody has joined attempt {run.attempt}, so nobody can have finished it.")
        return
    run = replace(run, step=max(run.step, event.step))
    run_machine.end(draft, draft.put_run(run), RunPhase.COMPLETED, f"all ranks have done step {event.step}, the last")


SYSTEM_EVENTS: dict[type, Callable[[Draft, Any], None]] = {
    events.DaemonStarted: _on_daemon_started,
    events.DeadlinePassed: _on_deadline_passed,
    events.CommandFailed: _on_command_failed,
    events.RunSubmitted: launch.submit,
    events.RunCancelled: _on_cancelled,
    events.NodeReady: fleet.on_ready,
}

NODE_EVENTS: dict[type, Callable[[Draft, Any], None]] = {
    events.NodeLost: fleet.on_lost,
    events.NodeFindings: fleet.on_findings,
    events.NodeProbed: fleet.on_probed,
    events.NodeQuarantined: fleet.on_quarantined,
    events.NodeReadmitted: fleet.on_readmitted,
    events.NodeRetired: fleet.on_retired,
    events.FaultInjected: fleet.on_injected,
}

ATTEMPT_EVENTS: dict[type, Callable[[Draft, RunState, Any], None]] = {
    events.StoreReady: stages.on_store_ready,
    events.StoreLost: workers.on_store_lost,
    events.WorkerLeft: workers.on_left,
    events.WorkerExited: workers.on_exited,
    events.WorkerFault: workers.on_fault,
    events.WorkerHung: workers.on_hung,
    events.GangFormed: stages.on_formed,
    events.GangRestored: stages.on_restored,
    events.FirstStep: stages.on_first_step,
    events.StepRegained: progress.on_step_regained,
    events.StepsCounted: progress.on_steps_counted,
    events.CheckpointCommitted: progress.on_checkpoint_committed,
    events.CheckpointRejected: progress.on_checkpoint_rejected,
    events.RunFinished: _on_finished,
}
