"""The fault tests that can be asked for, with their details."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.api.errors import ApiError


class FaultKind(msgspec.Struct, frozen=True, kw_only=True):
    """`needs` and `takes` are names of details; `gpu`, `xid` and `rank` are whole numbers, `run` is a text."""

    fault: str
    what: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


KINDS = {
    kind.fault: kind
    for kind in (
        FaultKind(fault="xid", what="the health monitor reads an XID of this GPU", needs=("xid",), takes=("gpu",)),
        FaultKind(fault="kill_worker", what="SIGKILL to a trainer", takes=("run", "rank")),
        FaultKind(fault="stop_worker", what="SIGSTOP to a trainer: it hangs", takes=("run", "rank")),
        FaultKind(fault="kill_raylet", what="SIGKILL to the node's raylet: the node is lost"),
        FaultKind(fault="stop_raylet", what="SIGSTOP to the node's raylet: the node freezes"),
        FaultKind(fault="kill_supervisor", what="SIGKILL to the node's supervisor"),
    )
}
INTEGERS = frozenset({"gpu", "xid", "rank"})


def checked_details(fault: str, details: dict[str, Any]) -> dict[str, int | str]:
    """The details of a known fault, with the right names and types. Raises ApiError."""
    kind = KINDS.get(fault)
    if kind is None:
        raise ApiError(f"There is no fault '{fault}'.", f"one of: {', '.join(KINDS)}")
    for name in kind.needs:
        if name not in details:
            raise ApiError(f"The fault '{fault}' needs '{name}'.")
    for name, value in details.items():
        if name not in (*kind.needs, *kind.takes):
            raise ApiError(
                f"The fault '{fault}' takes no '{name}'.", f"it takes: {', '.join((*kind.needs, *kind.takes))}"
            )
        if name in INTEGERS and (type(value) is not int or value < 0):
            raise ApiError(f"'{name}' must be a whole number from 0, not {value!r}.")
        if name not in INTEGERS and not isinstance(value, str):
            raise ApiError(f"'{name}' must be a text, not {value!r}.")
    return details
