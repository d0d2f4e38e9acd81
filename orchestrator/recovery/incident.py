"""The record of one disturbance: opened by a fault, joined by those that follow, closed by the first complete step."""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.recovery.state import Cause, Incident, Trouble

# Reports of one fault arrive in any order; the report that is nearer to the root names the incident. Any cause that is
# not here is a verdict on the node itself (a finding such as xid_48, or an operator), which outranks them all.
RANKS = {
    "unknown": 0,
    "worker_hung": 1,
    "worker_fault": 2,
    "command_failed": 2,
    "store_lost": 3,
    "worker_exited": 4,
    "node_lost": 5,
}
NODE_VERDICT = 6
DEADLINE = "_deadline"  # ends the name of a deadline that passed in a stage: form_deadline, ...

# Which part may follow which. The parts are causes of the ledger, so both tell the same seconds.
SUCCESSORS: dict[Cause, frozenset[Cause]] = {
    Cause.DETECT: frozenset({Cause.DECIDE}),
    Cause.DECIDE: frozenset({Cause.ISOLATE}),
    Cause.ISOLATE: frozenset({Cause.IDLE, Cause.WAITING_FOR_CAPACITY, Cause.PLACE}),
    Cause.IDLE: frozenset({Cause.WAITING_FOR_CAPACITY, Cause.PLACE}),
    Cause.WAITING_FOR_CAPACITY: frozenset({Cause.PLACE}),
    Cause.PLACE: frozenset({Cause.WAITING_FOR_CAPACITY, Cause.FORM, Cause.ISOLATE}),
    Cause.FORM: frozenset({Cause.RESTORE, Cause.ISOLATE}),
    Cause.RESTORE: frozenset({Cause.FIRST_STEP, Cause.ISOLATE}),
    Cause.FIRST_STEP: frozenset({Cause.ISOLATE}),
}


def rank_of_cause(cause: str) -> int:
    return 0 if cause.endswith(DEADLINE) else RANKS.get(cause, NODE_VERDICT)


def outranks(new: tuple[str, str], old: tuple[str, str]) -> bool:
    """Whether the first of two (cause, node) is nearer to the root: by its cause, else because it alone names a node."""
    difference = rank_of_cause(new[0]) - rank_of_cause(old[0])
    return difference > 0 or (difference == 0 and bool(new[1]) and not old[1])


def open_incident(
    number: int, run: str, trouble: Trouble, step: int, fault_at_ns: int, detected_at_ns: int
) -> Incident:
    """An incident in its phase DECIDE. `step` is the highest that all ranks had completed."""
    return Incident(
        id=f"inc-{number}",
        run=run,
        cause=trouble.cause,
        node=trouble.node,
        rank=trouble.rank,
        reason=trouble.sentence,
        fault_at_ns=fault_at_ns,
        detected_at_ns=detected_at_ns,
        marks=((Cause.DETECT.value, fault_at_ns), (Cause.DECIDE.value, detected_at_ns)),
        step_before=step,
    )


def mark(incident: Incident, part: Cause, at_ns: int) -> Incident:
    """Begin `part`. Entering the part that already lasts changes nothing."""
    last = incident.marks[-1][0]
    if last == part:
        return incident
    if part not in SUCCESSORS[Cause(last)]:
        raise ValueError(f"incident {incident.id}: {part} cannot follow {last}")
    return replace(incident, marks=(*incident.marks, (part.value, at_ns)))


def join(incident: Incident, trouble: Trouble) -> Incident:
    """Add another report: it names the incident when it is nearer to the root, stands in `also` when it is a fault of
    another node, and is a symptom otherwise."""
    new, old = (trouble.cause, trouble.node), (incident.cause, incident.node)
    if trouble.cause.endswith(DEADLINE):
        return replace(incident, also=_also(incident, *new))
    if new == old:
        return incident
    same_place = not incident.node or trouble.node in ("", incident.node)
    nearer = outranks(new, old)
    if same_place or (nearer and incident.rounds == 1):
        if not nearer:
            return incident
        also = incident.also if same_place else _also(incident, *old)
        return replace(
            incident, cause=trouble.cause, node=trouble.node, rank=trouble.rank, reason=trouble.sentence, also=also
        )
    return replace(incident, also=_also(incident, *new))


def _also(incident: Incident, cause: str, node: str) -> tuple[str, ...]:
    name = f"{cause} {node}".strip()
    return incident.also if name in incident.also else (*incident.also, name)


def backdate(incident: Incident, fault_at_ns: int) -> Incident:
    """Let it begin at `fault_at_ns`, which is not after its present begin."""
    return replace(incident, fault_at_ns=fault_at_ns, marks=((Cause.DETECT.value, fault_at_ns), *incident.marks[1:]))


def close(incident: Incident, at_ns: int, outcome: str) -> Incident:
    return replace(incident, ended_at_ns=at_ns, outcome=outcome)


def recovery_ns(incident: Incident) -> int:
    """From the fault to the first step that all ranks completed after it; 0 while it lasts."""
    return incident.ended_at_ns - incident.fault_at_ns if incident.ended_at_ns else 0
