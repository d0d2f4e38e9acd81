"""Bookkeeping of a run's time: every nanosecond belongs to exactly one cause. Exact integers, nothing is ever lost."""

from __future__ import annotations

from collections.abc import Iterable

from immutables import Map
from msgspec.structs import replace

from orchestrator.recovery.state import Cause, Ledger


def open_ledger(at_ns: int, cause: Cause) -> Ledger:
    return Ledger(opened_ns=at_ns, since_ns=at_ns, cause=cause)


def _credit(accounts: Map[str, int], cause: Cause, ns: int) -> Map[str, int]:
    return accounts.set(cause.value, accounts.get(cause.value, 0) + ns) if ns else accounts


def switch(ledger: Ledger, at_ns: int, cause: Cause) -> Ledger:
    """Charge the open interval up to `at_ns` (never backwards), its stalls apart, and open one for `cause`."""
    at_ns = max(at_ns, ledger.since_ns)
    spent = at_ns - ledger.since_ns
    checkpoint = min(ledger.checkpoint_stall_ns, spent)
    data = min(ledger.data_stall_ns, spent - checkpoint)
    accounts = _credit(ledger.accounts, Cause.CHECKPOINT_STALL, checkpoint)
    accounts = _credit(accounts, Cause.DATA_STALL, data)
    accounts = _credit(accounts, ledger.cause, spent - checkpoint - data)
    return Ledger(opened_ns=ledger.opened_ns, since_ns=at_ns, cause=cause, accounts=accounts)


def settled(ledger: Ledger, at_ns: int) -> Ledger:
    """The same ledger with the open interval charged up to `at_ns`: what a reader of the figures wants."""
    return ledger if ledger.closed else switch(ledger, at_ns, ledger.cause)


def stall(ledger: Ledger, checkpoint_ns: int, data_ns: int) -> Ledger:
    """Note stalls of the open interval."""
    return replace(
        ledger,
        checkpoint_stall_ns=ledger.checkpoint_stall_ns + max(0, checkpoint_ns),
        data_stall_ns=ledger.data_stall_ns + max(0, data_ns),
    )


def transfer(ledger: Ledger, sources: Iterable[Cause], target: Cause, ns: int) -> Ledger:
    """Move `ns` that were charged to `sources`, taken in their order, to `target`; at most what they hold."""
    accounts = ledger.accounts
    for source in sources:
        taken = min(ns, accounts.get(source.value, 0))
        accounts = _credit(_credit(accounts, source, -taken), target, taken)
        ns -= taken
    return replace(ledger, accounts=accounts)


def close(ledger: Ledger, at_ns: int) -> Ledger:
    return replace(switch(ledger, at_ns, ledger.cause), closed=True)
