"""The one native library of the process, or an object in its place."""

from __future__ import annotations

import pynvml

from healthcheck.nvml.errors import translate


def install(library: object | None) -> None:
    """Make the real pynvml wrappers call `library`; None: the machine's own, loaded at the next initialization.

    Process-wide, so a process can hold one simulated node. The wrappers keep function pointers; they are dropped.
    """
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()


def initialize() -> None:
    """Raises NvmlUnavailable with the reason in plain words."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise translate(error) from None


def shut_down() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise translate(error) from None
