"""Node loss, from two witnesses: the supervisor's connection and Ray's list of nodes.

A healthy node is not destroyed on one slow witness: a broken connection alone must last `ALONE_S`; with Ray's word that
the node is dead the verdict falls at once. A connection that is open but silent (a frozen machine) counts as broken after
`SILENT_S`. Pure: time is an argument.
"""

from __future__ import annotations

import msgspec

SILENT_S = 2.0  # eight beats
ALONE_S = 8.0  # longer than Ray needs to find a dead raylet, so that the second witness can speak first
RETURN_S = 20.0  # after a daemon's start, for supervisors to find it again


class _Witnesses(msgspec.Struct):
    connected: bool = False
    broken_ns: int = 0
    beat_ns: int = 0
    why: str = ""
    ray_alive: bool = True
    returning: bool = False  # known from the journal, not seen by this daemon yet
    lost: bool = False


class NodeLossDetector:
    def __init__(self) -> None:
        self._nodes: dict[str, _Witnesses] = {}

    def expect(self, node: str, now_ns: int) -> None:
        """A node that the journal holds as present; its supervisor has not connected to this daemon yet."""
        self._nodes[node] = _Witnesses(broken_ns=now_ns, why="the daemon started", returning=True)

    def connected(self, node: str, now_ns: int) -> None:
        self._nodes[node] = _Witnesses(connected=True, beat_ns=now_ns)

    def beat(self, node: str, now_ns: int) -> None:
        if (seen := self._nodes.get(node)) and seen.connected:
            seen.beat_ns = now_ns

    def disconnected(self, node: str, why: str, now_ns: int) -> None:
        if seen := self._nodes.get(node):
            seen.connected, seen.broken_ns, seen.why = False, now_ns, why

    def stood_still(self, gap_ns: int, now_ns: int) -> None:
        """The daemon itself did not run for that long and heard nobody: that is no node's silence."""
        for seen in self._nodes.values():
            seen.beat_ns = min(seen.beat_ns + gap_ns, now_ns)
            seen.broken_ns = min(seen.broken_ns + gap_ns, now_ns)

    def ray_says(self, node: str, alive: bool) -> None:
        if seen := self._nodes.get(node):
            seen.ray_alive = alive

    def verdicts(self, now_ns: int) -> list[tuple[str, str]]:
        """(node, evidence) of each node that is lost since the last call."""
        found = []
        for node, seen in self._nodes.items():
            evidence = None if seen.lost else _evidence(seen, now_ns)
            if evidence:
                seen.lost = True
                found.append((node, evidence))
        return found


def _evidence(seen: _Witnesses, now_ns: int) -> str | None:
    silent_s = (now_ns - seen.beat_ns) / 1e9
    if seen.connected:
        if silent_s > SILENT_S and not seen.ray_alive:
            return f"no beat for {silent_s:.1f} s, and Ray says that the node is dead"
        if silent_s > ALONE_S:
            return f"connected, but no beat for {silent_s:.1f} s"
        return None
    broken_s = (now_ns - seen.broken_ns) / 1e9
    if not seen.ray_alive:
        return f"its connection broke ({seen.why}), and Ray says that the node is dead"
    if broken_s > (RETURN_S if seen.returning else ALONE_S):
        return f"no connection for {broken_s:.1f} s ({seen.why})"
    return None
