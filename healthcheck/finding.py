"""What a check has to say: one statement about a node or one of its GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"


class Action(StrEnum):
    """What a finding recommends. Whoever reads it decides; nothing here acts."""

    NONE = "none"
    WATCH = "watch"
    RESTART_APPLICATION = "restart_application"
    RESET_GPU = "reset_gpu"
    DRAIN_AND_RESET = "drain_and_reset"
    REBOOT_NODE = "reboot_node"
    RESTART_FABRIC_MANAGER = "restart_fabric_manager"
    REPLACE = "replace"
    INSPECT = "inspect"


LEAVES_NODE_IN_SERVICE = frozenset({Action.NONE, Action.WATCH, Action.RESTART_APPLICATION})


@dataclass(frozen=True)
class Finding:
    """`gpu` is -1 for the whole node. Numbers that move from look to look belong in `evidence`, not in `sentence`.

    That rule lets a reader tell a changed finding (another severity, action or sentence) from the same one seen again.
    """

    check: str
    cause: str
    severity: Severity
    action: Action
    sentence: str
    gpu: int = -1
    evidence: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.check, self.cause, self.gpu)

    @property
    def blocks(self) -> bool:
        """True when the node should not be given work before somebody did something about it."""
        return self.action not in LEAVES_NODE_IN_SERVICE

    def as_json(self) -> dict[str, object]:
        return {
            "check": self.check,
            "cause": self.cause,
            "severity": self.severity.value,
            "action": self.action.value,
            "sentence": self.sentence,
            "gpu": self.gpu,
            "evidence": self.evidence,
        }
