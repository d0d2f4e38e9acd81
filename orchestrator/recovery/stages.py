"""The way forward, the same for a start and a recovery: PLACE, FORM, RESTORE, FIRST_STEP, and what each asks of nodes.

PLACE       every node index has a node; one of them starts the attempt's store     until StoreReady
FORM        every node brings its ranks into the attempt                            until GangFormed
RESTORE     every rank gets the state, from peers or a checkpoint                   until GangRestored
FIRST_STEP  all ranks complete one step together                                    until FirstStep
"""

from __future__ import annotations

from immutables import Map
from msgspec.structs import replace

from orchestrator.recovery import placement, run_machine
from orchestrator.recovery.commands import JoinGang, LeaveGang, ProbeNode, StartStore, StopWorkers
from orchestrator.recovery.draft import Draft
from orchestrator.recovery.events import FirstStep, GangFormed, GangRestored, StoreReady
from orchestrator.recovery.state import Cause, Hold, RecoveryPhase, Rung, RunPhase, RunState


def take_nodes(draft: Draft, run: RunState) -> RunState:
    """Fill the vacant node indices from the free nodes, of which there must be enough."""
    filled = placement.fill(run, draft.free, draft.nodes)
    for name in filled:
        node = draft.nodes[name]
        if node.run != run.run:
            draft.put_node(replace(node, run=run.run, injected_at_ns=0))
    return draft.put_run(replace(run, placement=filled, ran_on=filled))


def place(draft: Draft, run: RunState) -> RunState:
    """Fill the gang and ask for a store; without enough free nodes wait for them."""
    stayed = [name for name in run.placement if name]
    if placement.missing(run) > len(draft.free):
        return wait_for_nodes(draft, run)
    run = take_nodes(draft, run)
    new = [name for name in run.placement if name not in stayed]
    if new:
        draft.say(f"Run {run.run} takes {', '.join(new)}.")
    node = store_node(run, stayed)
    run = run_machine.enter(draft, run, RecoveryPhase.PLACE, f"attempt {run.attempt}: store starts on {node}")
    run = draft.put_run(replace(run, store=(node, "", 0), trouble=None))
    draft.say(f"Run {run.run} gets the store of attempt {run.attempt} on {node}.")
    draft.send(StartStore(node=node, run=run.run, attempt=run.attempt))
    return run


def store_node(run: RunState, stayed: list[str]) -> str:
    """The one that has been asked, else the first that was in the gang before; not the one of the last trouble."""
    blamed = run.trouble.node if run.trouble else ""
    if run.store is not None and run.store[0] in stayed:
        return run.store[0]
    candidates = [name for name in stayed if name != blamed] or [name for name in run.placement if name != blamed]
    return (candidates or list(run.placement))[0]


def wait_for_nodes(draft: Draft, run: RunState) -> RunState:
    """A recovering run keeps what it has; one that never ran gives all back, since it would only block others."""
    if run.phase is RunPhase.STARTING:
        run_machine.stop_everywhere(draft, run, draft.policy.stop_grace_s, "the run goes back to the queue")
        return back_to_queue(draft, run)
    reason = placement.shortage(run, len(draft.free), draft.holding)
    draft.say(f"Run {run.run} {reason}.")
    run = run_machine.hold(draft, run, Hold.CAPACITY, Cause.WAITING_FOR_CAPACITY, 0, reason)
    run_machine.enqueue(draft, run)
    return run


def back_to_queue(draft: Draft, run: RunState) -> RunState:
    run = run_machine.release(draft, run)
    reason = placement.shortage(run, len(draft.free), draft.holding)
    run = run_machine.move(draft, run, RunPhase.PENDING, reason)
    run = replace(
        run,
        stage=None,
        deadline_ns=0,
        hold=Hold.NONE,
        probing=frozenset(),
        stopping=frozenset(),
        trouble=None,
        holders=Map(),
        store=None,
    )
    run = draft.put_run(run_machine.charge(run, draft.now, Cause.WAITING_FOR_CAPACITY))
    draft.say(f"Run {run.run} goes back to the queue: it {reason}.")
    run_machine.enqueue(draft, run)
    return run


def on_store_ready(draft: Draft, run: RunState, event: StoreReady) -> None:
    if run.stage is not RecoveryPhase.PLACE or run.store is None or run.store[0] != event.node:
        draft.say(f"Run {run.run} awaits no store on {event.node}.")
        return
    peers = run.plan.speaks_protocol and placement.shards_covered(run)
    rung, restore = (Rung.IN_PLACE, "peers") if peers else (Rung.CHECKPOINT, "checkpoint")
    run = run_machine.enter(draft, run, RecoveryPhase.FORM, f"attempt {run.attempt}: {run.plan.world_size} ranks join")
    incident = run.incident and replace(run.incident, rung=rung)
    run = draft.put_run(
        replace(run, store=(event.node, event.host, event.port), rung=rung, restore=restore, incident=incident)
    )
    source = (
        f"peers (held by ranks {', '.join(map(str, sorted(run.holders)))})" if peers else "the newest proven checkpoint"
    )
    draft.say(f"Run {run.run}: the gang of attempt {run.attempt} forms; the state comes from {source}.")
    for node in run.placement:
        draft.send(join_command(run, node))


def join_command(run: RunState, node: str) -> JoinGang:
    """Needs a store that listens. Raises AssertionError without one."""
    assert run.store is not None
    return JoinGang(
        node=node,
        run=run.run,
        attempt=run.attempt,
        ranks=tuple(placement.ranks_of(run, node)),
        world_size=run.plan.world_size,
        replicas=run.plan.replicas,
        shards=run.plan.shards,
        store_host=run.store[1],
        store_port=run.store[2],
        restore=run.restore,
    )


def on_formed(draft: Draft, run: RunState, event: GangFormed) -> None:
    if run.stage is not RecoveryPhase.FORM:
        draft.say(f"Run {run.run}: that attempt {run.attempt} is formed is no news.")
        return
    run = _formed(draft, run)
    if run.plan.speaks_protocol:
        draft.say(f"Run {run.run}: all {run.plan.world_size} ranks have joined attempt {run.attempt}.")
        return
    run = run_machine.enter(draft, run, RecoveryPhase.FIRST_STEP, run.reason)
    draft.say(f"Run {run.run}: all processes have been started; the program does not tell more.")
    _train(draft, run, Cause.TRAINING, "its processes run")


def _formed(draft: Draft, run: RunState) -> RunState:
    run = run_machine.enter(draft, run, RecoveryPhase.RESTORE, f"attempt {run.attempt}: the state is put in place")
    return draft.put_run(replace(run, holders=Map()))


def on_restored(draft: Draft, run: RunState, event: GangRestored) -> None:
    if run.stage is RecoveryPhase.FORM:
        run = _formed(draft, run)
    if run.stage is not RecoveryPhase.RESTORE:
        draft.say(f"Run {run.run}: that attempt {run.attempt} is restored is no news.")
        return
    fell_back = run.rung is Rung.IN_PLACE and event.source != "peers"
    rung = run.rung if event.source == "peers" else Rung.CHECKPOINT
    _restored(draft, run, event.step, rung)
    lost = max(0, run.step - event.step)
    text = f"Run {run.run}: all ranks hold step {event.step} from {event.source}"
    text += " (peers could not give it)" if fell_back else ""
    draft.say(f"{text}; {lost} {'step is' if lost == 1 else 'steps are'} to be redone." if lost else f"{text}.")


def _restored(draft: Draft, run: RunState, step: int, rung: Rung) -> RunState:
    run = run_machine.enter(draft, run, RecoveryPhase.FIRST_STEP, f"attempt {run.attempt}: first step after {step}")
    incident = run.incident and replace(run.incident, rung=rung, restored_step=step, step_before=max(run.step, step))
    return draft.put_run(replace(run, rung=rung, incident=incident))


def on_first_step(draft: Draft, run: RunState, event: FirstStep) -> None:
    """A later stage's news implies those of the earlier ones, which may have been lost."""
    if run.stage is RecoveryPhase.FORM:
        run = _formed(draft, run)
    if run.stage is RecoveryPhase.RESTORE:
        run = _restored(draft, run, event.step - 1, run.rung)
    if run.stage is not RecoveryPhase.FIRST_STEP:
        draft.say(f"Run {run.run}: that attempt {run.attempt} steps is no news.")
        return
    new = event.step > run.step
    run = replace(run, step=max(run.step, event.step), barren_recoveries=0 if new else run.barren_recoveries)
    reason = f"attempt {run.attempt} trains since step {event.step}"
    _train(draft, run, Cause.TRAINING if new else Cause.REDONE_STEPS, reason)


def _train(draft: Draft, run: RunState, cause: Cause, reason: str) -> None:
    incident = run.incident
    run = run_machine.train(draft, run, cause, reason)
    run = run_machine.close_incident(run, draft.now, "recovered")
    run = replace(run, last_progress_step=run.step)
    draft.put_run(regained(run, draft.now) if cause is Cause.TRAINING else run)
    if incident is None:
        draft.say(f"Run {run.run} trains: {reason}.")
        return
    took_s = (draft.now - incident.fault_at_ns) / 1e9
    draft.say(f"Run {run.run} has recovered from {incident.cause} in {took_s:.3f} s: {reason}.")


def regained(run: RunState, at_ns: int) -> RunState:
    """Steps are new again: note it in the incidents whose lost steps were being redone, the last ones of the tuple."""
    ended = run.incidents
    index = len(ended)
    while index and not ended[index - 1].regained_at_ns:
        index -= 1
    if index == len(ended):
        return run
    return replace(run, incidents=ended[:index] + tuple(replace(i, regained_at_ns=at_ns) for i in ended[index:]))


def reissue(draft: Draft, run: RunState, only: str = "") -> int:
    """Send the commands of the present stage again, to all its nodes or to one. Returns how many."""
    sent = len(draft.commands)
    nodes = [name for name in placement.members(run) if only in ("", name)]
    if run.phase is RunPhase.CHECKING:
        for name in nodes:
            if name in run.probing:
                draft.send(ProbeNode(node=name, purpose="preflight", run=run.run, attempt=run.attempt))
    elif run.stage is RecoveryPhase.PLACE and run.store is not None and only in ("", run.store[0]):
        draft.send(StartStore(node=run.store[0], run=run.run, attempt=run.attempt))
    elif run.stage is RecoveryPhase.FORM:
        for name in nodes:
            draft.send(join_command(run, name))
    elif run.stage is RecoveryPhase.ISOLATE:
        others = sorted(name for name in run.stopping.difference(nodes) if only in ("", name))
        isolate_commands(draft, run, [*nodes, *others])
    return len(draft.commands) - sent


def isolate_commands(draft: Draft, run: RunState, nodes: list[str]) -> None:
    """End the trainers of the nodes that are being stopped; let those of the others leave that have not yet."""
    why = run.trouble.sentence if run.trouble else run.reason
    for name in nodes:
        if name in run.stopping:
            stop_workers(draft, run, name, why)
        elif not run.waiting.isdisjoint(placement.ranks_of(run, name)):
            draft.send(LeaveGang(node=name, run=run.run, attempt=run.attempt, why=why))


def stop_workers(draft: Draft, run: RunState, node: str, why: str) -> None:
    """End the run's processes on a node; trainers that speak the protocol have nothing to save and get no grace."""
    grace_s = 0.0 if run.plan.speaks_protocol else draft.policy.stop_grace_s
    draft.send(StopWorkers(node=node, run=run.run, attempt=run.attempt, grace_s=grace_s, why=why))
