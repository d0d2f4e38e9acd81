"""flash-linear-attention, if it is importable, for the comparison alone."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def available() -> bool:
    return importlib.util.find_spec("fla") is not None


def module(name: str) -> ModuleType:
    return importlib.import_module(f"fla.{name}")


def version() -> str:
    return importlib.import_module("fla").__version__


def lift_refusal() -> str | None:
    """Let the gated backward pass run on a Triton that fla refuses on Hopper; returns what was done, for the output.

    Its gradients may be wrong there (its issue 640), so that only its time may be used.
    """
    chunk_o = module("ops.common.chunk_o")
    if getattr(chunk_o, "TRITON_ABOVE_3_7_1", True):
        return None
    chunk_o.TRITON_ABOVE_3_7_1 = True
    return "fla's refusal of its gated backward on this Triton is lifted for timing; its gradients may be wrong"
