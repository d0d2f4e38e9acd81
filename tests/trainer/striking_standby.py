"""A standby whose trainers are struck at named points of a step, as HOLDFAST_TEST_STRIKES tells them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from trainer import standby
from trainer.__main__ import main as trainer_main


class Strikes:
    """Each strike: {"point", "step", "mark": file to make, "await": file to wait for, "do": kill, stop, raise, nothing}."""

    def __init__(self, strikes: list[dict]) -> None:
        self._strikes = strikes

    def at(self, point: str, step: int) -> None:
        for strike in [s for s in self._strikes if (s["point"], s["step"]) == (point, step)]:
            self._strikes.remove(strike)
            _strike(strike)


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


def main(argv: list[str]) -> int:
    return trainer_main(argv, Strikes(json.loads(os.environ.get("HOLDFAST_TEST_STRIKES", "[]"))))


if __name__ == "__main__":
    sys.exit(standby.run(main))
