"""What a trainer says of itself, as messages of the worker protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from trainer.protocol.client import Message
from trainer.train.state import Memory


class Reporter:
    """The voice of one rank in one attempt. `send` takes a message; without a supervisor it drops it."""

    def __init__(self, send: Callable[[Message], None], attempt: int) -> None:
        self._send = send
        self.attempt = attempt

    def phase(self, phase: str, **fields: object) -> None:
        self._say("phase", phase=phase, **fields)

    def progress(
        self,
        *,
        step: int,
        tokens: int,
        loss: float,
        grad_norm: float,
        step_ms: float,
        data_ms: float,
        checkpoint_ms: float,
        outcome: str,
        skipped: int,
    ) -> None:
        """`tokens` are those trained and `skipped` the steps skipped since the run began; the rest is of this step.

        JSON has no NaN: a loss or norm that isn't finite is left out.
        """
        finite = {k: v for k, v in (("loss", loss), ("grad_norm", grad_norm)) if math.isfinite(v)}
        self._say(
            "progress",
            step=step,
            tokens=tokens,
            **finite,
            step_ms=round(step_ms, 3),
            data_ms=round(data_ms, 3),
            checkpoint_ms=round(checkpoint_ms, 3),
            outcome=outcome,
            skipped=skipped,
        )

    def checkpoint(self, step: int, path: Path | str, digest: str, write_s: float) -> None:
        self._say("checkpoint", step=step, path=str(path), digest=digest, write_s=round(write_s, 6))

    def checkpoint_rejected(self, path: Path | str, why: str) -> None:
        self._say("checkpoint_rejected", path=str(path), why=why)

    def fault(self, kind: str, detail: str) -> None:
        self._say("fault", kind=kind, detail=detail[:2000])

    def left(self, memory: Memory, why: str) -> None:
        self._say(
            "left",
            step=memory.step,
            voted_step=memory.voted_step,
            holds_state=memory.state is not None,
            holds_gradients=memory.kept_step > 0,
            why=why[:2000],
        )

    def bye(self, reason: str, step: int) -> None:
        self._say("bye", reason=reason, step=step)

    def _say(self, message_type: str, /, **fields: object) -> None:
        self._send({"type": message_type, "attempt": self.attempt, **fields})
