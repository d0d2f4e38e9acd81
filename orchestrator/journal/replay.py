"""From entries back to a state: crash recovery and bug report alike.

A replay runs `decide` over the recorded events under the policy that was in effect then (DaemonStarted holds it), and
compares the commands it decides with those recorded. Where they differ, this version of `decide` is not the one that
wrote the journal. The replay then reports a Divergence and goes on with the state that this version decides: states are
not recorded, and a mixture of two versions' would be one that neither can reach. That state may disagree with what the
cluster was really told, so a daemon must not command from it unasked (`require_faithful`): trainers run on without a
daemon, and the version that wrote the journal can take them over again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from orchestrator.journal.entry import Entry
from orchestrator.journal.errors import JournalDamagedError, JournalDivergedError
from orchestrator.recovery.commands import Command
from orchestrator.recovery.decide import decide as core_decide
from orchestrator.recovery.decide import initial_state
from orchestrator.recovery.events import DaemonStarted, Event
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, State


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """Entry `seq` recorded other commands than this version decides. `error` is set when this version raises on it."""

    seq: int
    event: Event
    recorded: tuple[Command, ...]
    decided: tuple[Command, ...]
    recorded_reason: str
    decided_reason: str
    error: str = ""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """`last_ns` is the time of the last entry: the next clock starts no earlier (JournalClock)."""

    state: State
    last_ns: int
    entries: int
    poisoned: int
    divergences: tuple[Divergence, ...]

    def require_faithful(self) -> State:
        """The state, if every decision came out as recorded. Raises JournalDivergedError."""
        if not self.divergences:
            return self.state
        first = self.divergences[0]
        raise JournalDivergedError(
            f"{len(self.divergences)} of {self.entries} decisions differ from those recorded, the first at entry "
            f"{first.seq} ({type(first.event).__name__}): recorded {_kinds(first.recorded)}, "
            f"decided {_kinds(first.decided)}. "
            "Start the version that wrote this journal, or an empty state folder once its runs have ended."
        )


def replay(entries: Iterable[Entry], decide: Callable[[State, Event, Policy], Decision] = core_decide) -> Replay:
    """Raises JournalDamagedError when an entry is missing, or when time goes back."""
    policy = Policy()
    state = initial_state(policy)
    seq = last_ns = poisoned = 0
    divergences: list[Divergence] = []
    for entry in entries:
        if entry.seq != seq + 1 or entry.at_ns < last_ns:
            raise JournalDamagedError(
                f"entry {entry.seq} at {entry.at_ns} ns follows entry {seq} at {last_ns} ns. Restore a copy."
            )
        seq, last_ns = entry.seq, entry.at_ns
        if entry.error:
            poisoned += 1
            continue
        if isinstance(entry.event, DaemonStarted):
            policy = entry.event.policy
        try:
            decision = decide(state, entry.event, policy)
        except Exception as error:
            divergences.append(_divergence(entry, (), "", f"{type(error).__name__}: {error}"))
            continue
        if decision.commands != entry.commands:
            divergences.append(_divergence(entry, decision.commands, decision.reason))
        state = decision.state
    return Replay(state=state, last_ns=last_ns, entries=seq, poisoned=poisoned, divergences=tuple(divergences))


def _divergence(entry: Entry, decided: tuple[Command, ...], reason: str, error: str = "") -> Divergence:
    return Divergence(
        seq=entry.seq, event=entry.event, recorded=entry.commands, decided=decided,
        recorded_reason=entry.reason, decided_reason=reason, error=error,
    )  # fmt: skip


def _kinds(commands: tuple[Command, ...]) -> str:
    return ", ".join(f"{type(c).__name__} to {c.node}" for c in commands) or "nothing"
