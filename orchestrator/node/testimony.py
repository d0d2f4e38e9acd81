"""Events of the core, made of what trainers say and how they end. Pure, but for the last line of a dead one's log."""

from __future__ import annotations

import signal

from orchestrator.node import protocol
from orchestrator.node.logs import last_line
from orchestrator.node.processes import Exit
from orchestrator.node.worker import Worker
from orchestrator.recovery.events import (
    CheckpointCommitted,
    CheckpointRejected,
    WorkerExited,
    WorkerFault,
    WorkerLeft,
)


def event_of(
    worker: Worker, node: str, said: protocol.Fault | protocol.Checkpoint | protocol.CheckpointRejected
) -> WorkerFault | CheckpointCommitted | CheckpointRejected:
    """Of the attempt that the trainer names, since the core tells old news from new; before its first, the one to come."""
    attempt = said.attempt or worker.attempt
    match said:
        case protocol.Fault():
            return WorkerFault(
                run=worker.run,
                attempt=attempt,
                rank=worker.rank,
                node=node,
                fault=said.kind,
                detail=said.detail,
            )
        case protocol.Checkpoint():
            return CheckpointCommitted(
                run=worker.run, attempt=attempt, step=said.step, path=said.path, digest=said.digest
            )
        case protocol.CheckpointRejected():
            return CheckpointRejected(run=worker.run, attempt=attempt, path=said.path, why=said.why)


def left(worker: Worker, node: str, said: protocol.Left) -> WorkerLeft:
    return WorkerLeft(
        run=worker.run,
        attempt=worker.attempt,
        rank=worker.rank,
        node=node,
        step=said.step,
        voted_step=max(said.step, said.voted_step),
        holds_state=said.holds_state,
        why=said.why,
    )


def never_started(worker: Worker, node: str) -> WorkerExited:
    return WorkerExited(
        run=worker.run,
        attempt=worker.attempt,
        rank=worker.rank,
        node=node,
        detail="stopped before it was started",
    )


def exited(worker: Worker, node: str, how: Exit) -> WorkerExited:
    """One that does not speak has completed when it ended well of its own accord."""
    completed = worker.completed if worker.speaks else how.code == 0 and not worker.stopping
    detail = signal.Signals(how.signal).name if how.signal is not None else ""
    own_error = how.code is not None and not completed and not worker.stopping  # a killed process says nothing of why
    if own_error and worker.log_path and (last := last_line(worker.log_path)):
        detail = f"last line of its log: {last}"
    return WorkerExited(
        run=worker.run,
        attempt=worker.attempt,
        rank=worker.rank,
        node=node,
        exit_code=how.code,
        signal=how.signal,
        completed=completed,
        detail=detail,
    )
