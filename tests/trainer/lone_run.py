"""A run of one process, forked from the standby as `python -m trainer train` runs it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from trainer_harness import Standby


@dataclass
class Done:
    """A run that is over, or a life of it."""

    code: int
    log: str
    folder: Path

    @property
    def errors(self) -> list[str]:
        return [line for line in self.log.splitlines() if line.startswith("error:")]

    @property
    def outcomes(self) -> list[str]:
        lines = (self.folder / "metrics" / "rank-0.jsonl").read_text().splitlines()
        return [json.loads(line)["outcome"] for line in lines]


def train_alone(
    standby: Standby, config: Path, strikes: list[dict] | None = None, environ: dict[str, str] | None = None
) -> Done:
    """Train in the configuration's folder until the end, an error or a strike."""
    log = config.with_name("log")
    log.write_text("")
    given = {**os.environ, "HOLDFAST_TEST_STRIKES": json.dumps(strikes or []), **(environ or {})}
    code = standby.run(["train", "--config", str(config)], given, log)
    return Done(code, log.read_text(), config.parent)
