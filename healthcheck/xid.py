"""What an XID means on A100, H100 and B200, and what to do about it. A table of our own.

Actions follow NVIDIA's XID catalogue for B200 except where `ours` says why not. Parts that the catalogue excludes
from B200 (74, 80, 93, 136) follow its columns for the part that has them. XIDs that are not in this table are not
known to be harmless: `lookup` answers inspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from healthcheck.finding import Action, Finding, Severity
from healthcheck.nvml.abi import RecoveryAction
from healthcheck.telemetry import XidEvent

OFF_THE_BUS = 79
DOUBLE_BIT_ECC = 48
REMAP_RECORDED, REMAP_FAILED = 63, 64
RECOVERY_ACTION_CHANGED = 154


class XidClass(StrEnum):
    APPLICATION = "application"
    MEMORY = "memory"
    HARDWARE = "hardware"
    FIRMWARE = "firmware"
    BUS = "bus"
    FABRIC = "fabric"
    DRIVER = "driver"
    CONFIGURATION = "configuration"
    POWER = "power"
    SYMPATHETIC = "sympathetic"  # another XID is the cause
    SUMMARY = "summary"  # the driver's verdict on other XIDs
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Xid:
    number: int
    kind: XidClass
    action: Action
    severity: Severity
    sentence: str
    ours: str = ""  # why the action is not the catalogue's


_USUAL_SEVERITY = {
    Action.NONE: Severity.INFO,
    Action.WATCH: Severity.WARNING,
    Action.RESTART_APPLICATION: Severity.ERROR,
    Action.INSPECT: Severity.ERROR,
}

_A, _M, _H, _F = XidClass.APPLICATION, XidClass.MEMORY, XidClass.HARDWARE, XidClass.FIRMWARE
_L, _D, _C, _P = XidClass.FABRIC, XidClass.DRIVER, XidClass.CONFIGURATION, XidClass.POWER
_NONE, _WATCH, _RESTART = Action.NONE, Action.WATCH, Action.RESTART_APPLICATION
_RESET, _REBOOT, _INSPECT = Action.RESET_GPU, Action.REBOOT_NODE, Action.INSPECT
_BLANK = "The catalogue gives no action."

# number, class, action, sentence, and where the action is ours, why
_ROWS: tuple[tuple[int, XidClass, Action, str, str], ...] = (
    (8, _A, _RESTART, "A channel made no progress and the driver ended it.", ""),
    (11, _A, _RESTART, "The application's command stream asked for something the engine does not have.", ""),
    (13, _A, _RESTART, "A kernel raised an exception, most often an address outside its arrays.", ""),
    (14, _D, _NONE, "Somebody injected a test error.", ""),
    (25, _A, _RESTART, "The application's command stream held an illegal notification.", ""),
    (31, _A, _RESTART, "A kernel touched an address that is not mapped.", ""),
    (32, _A, _RESTART, "A corrupted command stream reached the GPU.", ""),
    (37, _D, _NONE, "The context switch firmware met a method it does not know.", ""),
    (38, _D, _NONE, "The context switch firmware was late; the driver went on.", ""),
    (43, _A, _RESTART, "The application's channel was reset after a fault of its own; the GPU is healthy.",
     "The catalogue ignores it because the GPU is healthy, but the application is dead."),
    (44, _D, _NONE, "A fault fell into a context switch; the driver went on.", ""),
    (45, XidClass.SYMPATHETIC, _WATCH, "The driver cleaned up after an application that ended, by an error or a signal.",
     "It is logged for every killed process, so that alone it says nothing about the fabric manager; its cause does."),
    (46, _H, _RESET, "The GPU stopped processing and did not answer the driver.", ""),
    (48, _M, _RESET, "Memory had an error of two bits that ECC can't correct.", ""),
    (54, _H, _INSPECT, "The board's auxiliary power is missing: check power and seating.", ""),
    (60, _A, _RESTART, "The security processor raised an exception for the application.", ""),
    (62, _F, _RESET, "A microcontroller inside the GPU halted.", ""),
    (63, _M, _WATCH, "A memory row was marked to be remapped at the next reset.", ""),
    (64, _M, _RESET, "A memory row could not be remapped: reset now; we count it toward replacement.", ""),
    (66, _D, _NONE, "The driver touched a register it has no right to.", ""),
    (67, _D, _NONE, "The driver violated a verification of the context switch firmware.", ""),
    (69, _A, _RESTART, "The graphics engine met an invalid class or method of the application.", ""),
    (74, _L, _RESET, "An NVLink of this GPU failed, here or at its other end.",
     "The catalogue points to a workflow (A100, H100); it ends in a reset of the GPU."),
    (78, _C, _INSPECT, "A virtual GPU did not start: update driver and host software.", ""),
    (79, XidClass.BUS, _REBOOT, "The GPU has fallen off the bus; only a reboot or a power cycle can bring it back.", ""),
    (80, _A, _RESTART, "Data reached the GPU with a wrong checksum.", ""),
    (92, _M, _WATCH, "Corrected single-bit errors come at a high rate.", ""),
    (93, _C, _WATCH, "The information ROM refused a write because of its wear limit.", ""),
    (94, _M, _RESTART, "An uncorrectable memory error was contained to one application; reset when convenient.", ""),
    (95, _M, _RESET, "An uncorrectable memory error was not contained: every application on the GPU is affected.", ""),
    (106, _D, _NONE, "A test message of the management controller.", ""),
    (107, _D, _NONE, "A silent test message of the management controller.", ""),
    (108, _D, _NONE, "An address translation for a peer failed; parts in use no longer report it.", ""),
    (109, _H, _RESET, "A context switch did not end in time.", ""),
    (110, _H, _RESET, "The GPU reports a security fault, rare without a defect.", ""),
    (119, _F, _RESET, "The GPU's system processor did not answer the driver.", ""),
    (120, _F, _RESET, "The GPU's system processor failed.", ""),
    (136, _L, _RESET, "An NVLink could not be trained (H100).", ""),
    (137, _L, _NONE, "An access over NVLink was not permitted, most often by the application.", ""),
    (140, _M, _RESET, "An uncorrectable memory error escaped the driver's page handling.", ""),
    (141, _A, _NONE, "A fast path of CUDA failed and the driver took the slow one.", ""),
    (143, _H, _RESET, "The GPU did not initialize.", ""),
    (151, _C, _REBOOT, "The keys of the confidential session could not be rotated: restart the virtual machine.", ""),
    (154, XidClass.SUMMARY, _INSPECT, "The driver changed the recovery that it recommends.", ""),
    (155, _L, _RESET, "The driver took an NVLink down on purpose, after an error or to sleep.", ""),
    (156, _M, _RESET, "A part of the GPU was retired; a reset takes it out of use.", ""),
    (157, _M, _WATCH, "A part of the GPU could not be retired for want of spares; the error may come again.", ""),
    (158, _H, _RESET, "The GPU ran into a fatal timeout.", ""),
    (159, _L, _RESET, "A transfer over the chip-to-chip link failed.",
     "The catalogue resets only with unified memory; the driver does not tell us, so we always do."),
    (160, _D, _NONE, "A channel was retired.", ""),
    (161, _D, _NONE, "A channel could not be retired.", ""),
    (162, _P, _NONE, "Power smoothing is on again.", _BLANK),
    (163, _P, _WATCH, "Power smoothing was switched off, by heat or by a timeout.", _BLANK),
    (164, _P, _WATCH, "The power smoothing circuit is near the end of its life.", _BLANK),
    (165, _P, _WATCH, "The power smoothing circuit is worn out; power swings will reach the grid.", _BLANK),
    (166, _C, _INSPECT, "Encrypted traffic met an NVLink that was not set up for it (confidential computing).", _BLANK),
    (167, XidClass.BUS, _REBOOT, "A fatal timeout on PCI Express.", f"{_BLANK} Others count it as fatal."),
    (168, _M, _REBOOT, "Errors in protected memory; the driver must choose another place at boot.",
     f"{_BLANK} The driver moves the region at the next boot."),
    (169, _F, _RESET, "The security processor inside the GPU halted.", f"{_BLANK} Others count it as fatal."),
    (170, _C, _INSPECT, "An unexpected interrupt of NVLink in confidential computing.", _BLANK),
    (171, _M, _RESET, "The uncorrectable error was in memory chips (detail of XID 48).", f"{_BLANK} Same as XID 48."),
    (172, _M, _RESET, "The uncorrectable error was in on-chip memory (detail of XID 48).", f"{_BLANK} Same as XID 48."),
)  # fmt: skip

_LINK_UNITS = {
    144: "requester logic",
    145: "receive logic",
    146: "transmit logic",
    147: "crossbar interface",
    148: "port controller",
    149: "physical link",
    150: "management engine",
}
_LINK_REASON = (
    "Which of the catalogue's rules holds is in two registers of the kernel log, which NVML does not hand out."
)

_ENGINES = {
    "copy engine": (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)),
    "video decoder": (68, 83, 84, 88, 89, 96, 97, 98),
    "JPEG decoder": (82, *range(99, 106)),
    "optical flow engine": (86, 139),
}


def _table() -> dict[int, Xid]:
    rows = list(_ROWS)
    for engine, numbers in _ENGINES.items():
        rows += [
            (number, _A, _RESTART, f"The {engine} {index} raised an exception for the application.", "")
            for index, number in enumerate(numbers)
        ]
    rows += [
        (number, _L, _WATCH, f"The {unit} of an NVLink reports an error.", _LINK_REASON)
        for number, unit in _LINK_UNITS.items()
    ]
    return {
        number: Xid(number, kind, action, _USUAL_SEVERITY.get(action, Severity.FATAL), sentence, ours)
        for number, kind, action, sentence, ours in rows
    }


XIDS = _table()

# What NVML's field and XID 154 recommend. 3 asks to quiet the peers first, which for us is the same as draining.
RECOVERY_ACTIONS = {
    RecoveryAction.NONE: (Action.NONE, "The driver recommends no recovery."),
    RecoveryAction.GPU_RESET: (Action.RESET_GPU, "The driver asks for a reset of the GPU."),
    RecoveryAction.NODE_REBOOT: (Action.REBOOT_NODE, "The driver asks for a reboot of the node."),
    RecoveryAction.DRAIN_P2P: (Action.DRAIN_AND_RESET, "The driver asks to end all traffic with peer GPUs."),
    RecoveryAction.DRAIN_AND_RESET: (Action.DRAIN_AND_RESET, "The driver asks to drain and then reset the GPU."),
    RecoveryAction.RECOVER_IMEX_DOMAIN: (
        Action.RESTART_FABRIC_MANAGER,
        "The driver asks to recover the domain of memory shared between nodes.",
    ),
    RecoveryAction.BUS_RESET: (Action.RESET_GPU, "The driver asks for a reset of the GPU's bus."),
    RecoveryAction.SYSTEM_REBOOT: (Action.REBOOT_NODE, "The driver asks for a reboot of the whole system."),
}


def lookup(number: int) -> Xid:
    """The table's row; for a number that is not in it, one that says so: unknown is not healthy."""
    known = XIDS.get(number)
    if known is not None:
        return known
    sentence = f"XID {number} is in no table: unknown is not healthy."
    return Xid(number, XidClass.UNKNOWN, Action.INSPECT, Severity.ERROR, sentence)


def recovery(code: int) -> tuple[Action, Severity, str]:
    """Action, severity and sentence of a recovery action of the driver's; an unknown one must be inspected."""
    action, sentence = RECOVERY_ACTIONS.get(  # type: ignore[call-overload]
        code, (Action.INSPECT, f"The driver recommends recovery {code}, which is in no table: unknown is not healthy.")
    )
    return action, _USUAL_SEVERITY.get(action, Severity.FATAL), sentence


def finding(event: XidEvent, count: int = 1, with_remap: bool = False) -> Finding:
    """What an XID says. `with_remap`: the same GPU also logged 63 or 64, after which 48 wants a drain before its reset."""
    row = lookup(event.xid)
    action, severity, sentence = row.action, row.severity, row.sentence
    if event.xid == RECOVERY_ACTION_CHANGED and event.recovery_action is not None:
        action, severity, sentence = recovery(event.recovery_action)
    if event.xid == DOUBLE_BIT_ECC and with_remap:
        action = Action.DRAIN_AND_RESET
    evidence = {"xid": str(event.xid), "class": row.kind.value, "count": str(count)}
    if event.detail:
        evidence["log"] = event.detail
    return Finding("xid", f"xid_{event.xid}", severity, action, f"XID {event.xid}: {sentence}", event.gpu, evidence)
