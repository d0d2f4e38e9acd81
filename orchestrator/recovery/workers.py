"""What trainers and stores report: who left, who ended, who failed. Each handler gets an event of the run's attempt."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery import failure, placement, run_machine
from orchestrator.recovery.draft import Draft
from orchestrator.recovery.events import CommandFailed, StoreLost, WorkerExited, WorkerFault, WorkerHung, WorkerLeft
from orchestrator.recovery.state import RecoveryPhase, RunPhase, RunState, Trouble

UNKNOWN = "unknown"
# Faults after which the run has failed, each with why another attempt can't help.
FINAL = {
    "config": "no other attempt can mend that",
    "unstable": "another attempt would compute the same again",
}


def belongs(run: RunState, rank: int, node: str) -> bool:
    """Whether the rank is that node's: it holds it in the gang, or was put out and still ends its trainers."""
    if not 0 <= rank < run.plan.world_size:
        return False
    return placement.node_of(run, rank) == node or (node in run.stopping and not placement.node_of(run, rank))


def on_left(draft: Draft, run: RunState, event: WorkerLeft) -> None:
    who = f"rank {event.rank} on {event.node}"
    if not belongs(run, event.rank, event.node):
        draft.say(f"Run {run.run}: {who} is not in its gang.")
        return
    if failure.active(run):
        why = f" ({event.why})" if event.why else ""
        trouble = Trouble(cause=UNKNOWN, sentence=f"{who} left before any cause was seen{why}")
        run = failure.fail(draft, run, trouble, event)
    if run.stage is not RecoveryPhase.ISOLATE or event.rank not in run.waiting:
        draft.say(f"Run {run.run}: that {who} left is no news.")
    elif event.node in run.stopping:
        draft.say(f"Run {run.run}: {who} left and is being ended.")
    else:
        run = replace(run, waiting=run.waiting - {event.rank}, step=max(run.step, event.step))
        if event.holds_state:
            run = replace(run, holders=run.holders.set(event.rank, event.step))
        state = f"with the state of step {event.step}" if event.holds_state else "without state"
        draft.say(f"Run {run.run}: {who} left {state}; {len(run.waiting)} to go.")
        failure.go_on(draft, draft.put_run(run))


def on_exited(draft: Draft, run: RunState, event: WorkerExited) -> None:
    who = f"rank {event.rank} on {event.node}"
    if not belongs(run, event.rank, event.node) or event.rank in run.completed:
        draft.say(f"Run {run.run}: that {who} ended is no news.")
    elif event.completed or (not run.plan.speaks_protocol and event.exit_code == 0):
        on_completed(draft, run, event)
    elif run.stage is RecoveryPhase.PLACE:
        before_join(draft, run, event)
    elif run.stage is RecoveryPhase.ISOLATE:
        while_leaving(draft, run, event)
    else:
        failure.fail(draft, run, exited(event), event, dead=(event.rank,))


def exited(event: WorkerExited) -> Trouble:
    if event.signal is not None:
        how = f"was killed by signal {event.signal}"
    elif event.exit_code is not None:
        how = f"ended with code {event.exit_code}"
    else:
        how = "ended"
    sentence = f"rank {event.rank} on {event.node} {how}" + (f" ({event.detail})" if event.detail else "")
    return Trouble(cause="worker_exited", node=event.node, rank=event.rank, sentence=sentence)


def on_completed(draft: Draft, run: RunState, event: WorkerExited) -> None:
    missing = run.missing - {event.rank}
    due_ns = 0 if run.missing and not missing else run.deadline_ns
    run = replace(run, completed=run.completed | {event.rank}, missing=missing, deadline_ns=due_ns)
    run = draft.put_run(run)
    draft.say(
        f"Run {run.run}: rank {event.rank} has done every step, {len(run.completed)} of {run.plan.world_size} have."
    )
    if len(run.completed) == run.plan.world_size:
        run_machine.end(draft, run, RunPhase.COMPLETED, "all ranks have done every step")
    elif run.stage is RecoveryPhase.ISOLATE:
        failure.absorb(draft, run, event, dead=(event.rank,))


def while_leaving(draft: Draft, run: RunState, event: WorkerExited) -> None:
    """An end that was ordered is the answer awaited; any other is news of a fault, unless that is known."""
    awaited = event.rank in run.waiting or event.rank in run.holders
    if not awaited and run.trouble is not None and run.trouble.cause != UNKNOWN:
        draft.say(f"Run {run.run}: rank {event.rank} on {event.node} is known to be gone.")
    elif event.node in run.stopping or event.rank in run.faulted:
        why = "as ordered" if event.node in run.stopping else "after the error it reported"
        draft.say(f"Run {run.run}: rank {event.rank} on {event.node} has ended {why}.")
        failure.absorb(draft, run, event, dead=(event.rank,))
    else:
        failure.fail(draft, run, exited(event), event, dead=(event.rank,))


def before_join(draft: Draft, run: RunState, event: WorkerExited) -> None:
    """It had left and waited for the next attempt; another takes its rank when the gang forms."""
    draft.put_run(replace(run, holders=run_machine.without(run.holders, (event.rank,))))
    draft.say(f"Run {run.run}: {exited(event).sentence} before attempt {run.attempt} formed; its rank is started anew.")


def late_exit(draft: Draft, run: RunState, event: WorkerExited) -> bool:
    """Whether a survivor of the last attempt ended before it joined this one; acts on it if so."""
    if event.attempt != run.attempt - 1 or event.rank not in run.holders or not belongs(run, event.rank, event.node):
        return False
    if run.stage is RecoveryPhase.PLACE:
        before_join(draft, run, event)
    elif run.stage is RecoveryPhase.FORM:
        failure.fail(draft, run, exited(event), event, dead=(event.rank,))
    else:
        return False
    return True


def on_fault(draft: Draft, run: RunState, event: WorkerFault) -> None:
    who = f"rank {event.rank} on {event.node}"
    sentence = f"{who} reports {event.fault}" + (f": {event.detail}" if event.detail else "")
    leaving = run.stage is RecoveryPhase.ISOLATE
    if not belongs(run, event.rank, event.node) or not (leaving or failure.active(run)):
        draft.say(f"Run {run.run}: {who} is in no attempt: its {event.fault} changes nothing.")
        return
    if event.fault in FINAL:
        draft.say(f"Run {run.run}: {sentence}.")
        run_machine.end(draft, run, RunPhase.FAILED, f"{sentence}; {FINAL[event.fault]}")
        return
    if event.fault != "peer":
        trouble = Trouble(cause="worker_fault", node=event.node, rank=event.rank, sentence=sentence)
        run = failure.fail(draft, run, trouble, event)
    elif leaving:
        draft.say(f"Run {run.run}: {who} lost a peer, as was to be expected.")
    else:
        trouble = Trouble(cause=UNKNOWN, sentence=f"{who} lost a peer before any cause was seen")
        run = failure.fail(draft, run, trouble, event)
    if run.stage is RecoveryPhase.ISOLATE:
        draft.put_run(replace(run, faulted=run.faulted | {event.rank}))


def on_hung(draft: Draft, run: RunState, event: WorkerHung) -> None:
    if not (run.stage is RecoveryPhase.ISOLATE or failure.active(run)):
        draft.say(f"Run {run.run} is in no attempt that could hang.")
    elif event.rank < 0:
        trouble = Trouble(cause="worker_hung", sentence=f"the gang makes no progress: {event.evidence}")
        failure.fail(draft, run, trouble, event)
    elif not belongs(run, event.rank, event.node) or event.rank in run.completed:
        draft.say(f"Run {run.run}: rank {event.rank} on {event.node} is not in its gang.")
    else:
        sentence = f"rank {event.rank} on {event.node} hangs: {event.evidence}"
        trouble = Trouble(cause="worker_hung", node=event.node, rank=event.rank, sentence=sentence)
        failure.fail(draft, run, trouble, event, stop=(event.node,))


def on_store_lost(draft: Draft, run: RunState, event: StoreLost) -> None:
    if run.stage is RecoveryPhase.ISOLATE or run.store is None or run.store[0] != event.node:
        draft.say(f"Run {run.run} does not need the store on {event.node} any more.")
        return
    sentence = f"the store of attempt {run.attempt} on {event.node} is lost" + (
        f": {event.detail}" if event.detail else ""
    )
    failure.fail(draft, run, Trouble(cause="store_lost", node=event.node, sentence=sentence), event)


def on_command_failed(draft: Draft, run: RunState, event: CommandFailed) -> None:
    """Only a store or a join that could not be had matters: leaving and ending have deadlines of their own."""
    sentence = f"{event.node} could not carry out {event.command}: {event.error}"
    trouble = Trouble(cause="command_failed", node=event.node, sentence=sentence)
    store_node = run.store[0] if run.store is not None and run.stage is RecoveryPhase.PLACE else ""
    if event.command == "start_store" and event.node == store_node:
        failure.fail(draft, run, trouble, event)
    elif event.command == "join_gang" and run.stage is RecoveryPhase.FORM and event.node in run.placement:
        # Who was not started can't answer, so nobody on that node is awaited.
        ranks = placement.ranks_of(run, event.node)
        failure.fail(draft, run, trouble, event, dead=ranks, stop=(event.node,))
    else:
        draft.say(f"Run {run.run}: {sentence}; nothing waits for it.")
