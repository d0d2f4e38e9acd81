"""The run's launch description, as the daemon sends it with an order."""

from __future__ import annotations

import msgspec


class WorkloadError(ValueError):
    """The description can't be used; the message says why."""


class Workload(msgspec.Struct, frozen=True):
    """`argv` is run by the standby as the trainer's command line, `command` by exec; a workload has one of them.

    `protocol` says whether the trainers speak the worker protocol; None: those of `argv` do, a `command` does not.
    """

    run_dir: str = ""
    argv: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    protocol: bool | None = None

    @property
    def speaks(self) -> bool:
        return not self.command if self.protocol is None else self.protocol


def parse_workload(given: dict | None) -> Workload:
    """WorkloadError when it is missing or malformed."""
    if given is None:
        raise WorkloadError("the order came without a workload")
    try:
        workload = msgspec.convert(given, Workload)
    except msgspec.ValidationError as error:
        raise WorkloadError(f"the workload is malformed: {error}") from None
    if bool(workload.argv) == bool(workload.command):
        raise WorkloadError("the workload needs either argv or command")
    if not workload.speaks and workload.argv:
        raise WorkloadError("a workload of argv speaks the worker protocol")
    return workload
