"""The NVIDIA driver's lines in the kernel log: `NVRM: Xid (PCI:0000:8f:00): 48, pid=..., name=..., what happened`.

A line may be cut anywhere, by the log's ring or by a crash in the middle of a write. What is left is still evidence: a
number that may have lost digits is read as UNKNOWN_XID, never as the number that its beginning spells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from healthcheck.nvml.abi import UNKNOWN_XID

_MARK = re.compile(r"\bXid \(")
_PLACE = re.compile(r"(?:PCI:)?(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-7])?\): ")
_NUMBER = re.compile(r"(?P<xid>\d{1,9})(?P<end>,)?")
# A number counts only when something follows it: at the end of a line it may have lost digits.
_PROCESS = re.compile(r"\bpid='?(\d+)(?=[',])")
_LINK = re.compile(r"\bLink (-?\d+)(?= )")
_REGISTER = re.compile(r"0x([0-9a-fA-F]{8})\b")
_RECOVERY = re.compile(r"recovery action changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]+)(?= )")
_SEVERITY = re.compile(r"\b(Nonfatal|Fatal)\b")


@dataclass(frozen=True)
class KernelXid:
    """`pci` is domain:bus:device in lower case with a domain of 4 digits, empty when it was cut off. `truncated` is
    what can be seen: a cut between two words of free text leaves no trace.

    `registers` are those of an NVLink5 line, `fatal` its verdict; `recovery_action` is the new one of XID 154.
    """

    pci: str
    xid: int
    truncated: bool
    detail: str = ""
    pid: int | None = None
    link: int | None = None
    fatal: bool | None = None
    registers: tuple[int, ...] = ()
    recovery_action: int | None = None


def parse(line: str) -> KernelXid | None:
    """None when the line is about no XID."""
    mark = _MARK.search(line)
    if mark is None:
        return None
    place = _PLACE.match(line, mark.end())
    if place is None:
        return KernelXid("", UNKNOWN_XID, truncated=True)
    pci = _short_pci(place["pci"])
    number = _NUMBER.match(line, place.end())
    if number is None or number["end"] is None:
        return KernelXid(pci, UNKNOWN_XID, truncated=True)
    return _with_detail(pci, int(number["xid"]), line[number.end() :].strip())


def _short_pci(pci: str) -> str:
    domain, rest = pci.lower().split(":", 1)
    return f"{int(domain, 16):04x}:{rest}"


def _with_detail(pci: str, xid: int, detail: str) -> KernelXid:
    pid, link, severity, recovery = (p.search(detail) for p in (_PROCESS, _LINK, _SEVERITY, _RECOVERY))
    return KernelXid(
        pci=pci,
        xid=xid,
        truncated=not detail or detail.count("(") != detail.count(")"),
        detail=detail,
        pid=int(pid[1]) if pid else None,
        link=int(link[1]) if link else None,
        fatal=severity[1] == "Fatal" if severity else None,
        registers=tuple(int(word, 16) for word in _REGISTER.findall(detail)),
        recovery_action=int(recovery[1], 16) if recovery else None,
    )
