"""Where the Triton kernels under test run: on the GPU, else in Triton's interpreter, for one test at a time.

Setting TRITON_INTERPRET for the whole process would need Triton not to be imported yet, and would disturb every test
that compiles with it. Here each jitted function is swapped for its interpreted twin while the fixture is in use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device whose tensors Triton kernels take: CUDA where there is one, else the CPU through the interpreter."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    _interpret(monkeypatch)
    _shorten_segments(monkeypatch)
    yield torch.device("cpu")


def _interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    if _release(triton.__version__) < (3, 7) and _release(numpy.__version__) >= (2, 4):
        pytest.skip("Triton's interpreter before 3.7 takes arrays of one element for numbers, which numpy 2.4 refuses")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    jit = pytest.importorskip("triton.runtime.jit")

    @functools.cache
    def twin(function: Callable) -> interpreter.InterpretedFunction:
        return interpreter.InterpretedFunction(function)

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # constexpr functions ask for it at each call
    monkeypatch.setattr(jit.JITFunction, "run", lambda self, *args, **kwargs: twin(self.fn).run(*args, **kwargs))
    monkeypatch.setattr(jit.JITFunction, "__call__", lambda self, *args, **kwargs: twin(self.fn)(*args, **kwargs))


def _shorten_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and segments of the short convolution also of the few rows that the interpreter has time for."""
    from kernels.short_conv import triton

    monkeypatch.setitem(triton.LAUNCHES, "sm_90", triton.Launch(16, 64, 1, 16, 64, 1))


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
