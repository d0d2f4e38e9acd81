"""A standby whose trainers are struck at named points of a step or inside a save, as HOLDFAST_TEST_STRIKES tells them.

With HOLDFAST_TEST_INSTANCES each appends what it loads to that file, a line a batch: {"step", "rank", "world", "instances":
digest of each sequence's tokens}.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainer import standby
from trainer.__main__ import main as trainer_main

FILE_OPERATIONS = ("mkdir", "open", "pwrite", "fsync", "rename")
_write = os.pwrite


class Strikes:
    """Each strike: {"point", "step", "mark": file to make, "await": file to wait for, "do": as _strike knows it}.

    "visit" waits for that visit of the point, 1 for the first: a step that is tried again comes by twice. "do" may be
    "poison", at the point forward: the loss, and so the gradient, is multiplied by "factor", "times" times.

    One of the point "save" is {"point", "step", "mark", "root", "operation", "number"}: a kill at that occurrence of that
    file operation under the folder `root` from the update of the step on. It isn't carried out, but a write in part.
    """

    def __init__(self, strikes: list[dict]) -> None:
        self._strikes = strikes

    def at(self, point: str, step: int) -> None:
        for strike in self._due(point, step):
            strike["visit"] = strike.get("visit", 1) - 1
            if strike["visit"] > 0:
                continue
            strike["times"] = strike.get("times", 1) - 1
            if strike["times"] <= 0:
                self._strikes.remove(strike)
            _strike(strike)
        for strike in self._due("save", step) if point == "optimizer" else ():
            self._strikes.remove(strike)
            KillInSave(strike)

    def _due(self, point: str, step: int) -> list[dict]:
        return [strike for strike in self._strikes if (strike["point"], strike["step"]) == (point, step)]


class KillInSave:
    """Takes the place of os's functions from now on."""

    def __init__(self, strike: dict) -> None:
        self._root, self._left, self._mark = strike["root"], strike["number"], Path(strike["mark"])
        self._lock = threading.Lock()
        setattr(os, strike["operation"], self._around(strike["operation"], getattr(os, strike["operation"])))

    def _around(self, name: str, operation: Callable) -> Callable:
        def counted(first: object, *arguments: object, **options: object) -> object:
            if self._concerns(first):
                with self._lock:
                    self._left -= 1
                    if self._left == 0:
                        self._die(name, first, arguments)
            return operation(first, *arguments, **options)

        return counted

    def _concerns(self, first: object) -> bool:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fsdecode(first)
        return path.startswith(self._root)

    def _die(self, name: str, first: object, arguments: tuple) -> None:
        if name == "pwrite":
            block, offset = arguments
            _write(first, memoryview(block)[: len(block) // 2], offset)
        self._mark.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(root: str) -> None:
    """Let every write under the folder fail, as on a disk that is full."""

    def refused(handle: int, block: object, offset: int) -> int:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if path.startswith(root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return _write(handle, block, offset)

    os.pwrite = refused


def record_instances(path: str) -> None:
    """Let every batch that is loaded leave a line in the file."""
    from trainer.data.dataset import TokenDataset  # not before the standby has prepared to import numpy

    load = TokenDataset.batch

    def recorded(dataset: object, step_index: int, rank: int = 0, world: int = 1) -> object:
        batch = load(dataset, step_index, rank, world)
        digests = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in batch.tokens]
        line = {"step": step_index + 1, "rank": rank, "world": world, "instances": digests}
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        return batch

    TokenDataset.batch = recorded


def poison_next_loss(factor: float) -> None:
    from trainer.model.transformer import HybridModel

    whole = HybridModel.loss

    def poisoned(*arguments: object, **options: object) -> object:
        HybridModel.loss = whole
        return whole(*arguments, **options) * factor

    HybridModel.loss = poisoned


def poison_next_gradient() -> None:
    """A NaN in the reduced gradient of a try whose loss is finite."""
    from trainer.train import step

    whole = step.squared_norm

    def poisoned(gradients: dict) -> float:
        step.squared_norm = whole
        next(iter(gradients.values())).view(-1)[:1] = float("nan")
        return whole(gradients)

    step.squared_norm = poisoned


def _strike(strike: dict) -> None:
    if "mark" in strike:
        Path(strike["mark"]).touch()
    while "await" in strike and not Path(strike["await"]).exists():
        time.sleep(0.002)
    match strike["do"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise RuntimeError("gloo: struck by a test")
        case "fail":
            raise ValueError("struck by a test")
        case "fill_disk":
            fill_disk(strike["root"])
        case "free_disk":
            os.pwrite = _write
        case "poison":
            poison_next_loss(strike["factor"])
        case "poison_gradient":
            poison_next_gradient()


def main(argv: list[str]) -> int:
    if path := os.environ.get("HOLDFAST_TEST_INSTANCES"):
        record_instances(path)
    return trainer_main(argv, Strikes(json.loads(os.environ.get("HOLDFAST_TEST_STRIKES", "[]"))))


if __name__ == "__main__":
    sys.exit(standby.run(main))
