"""The exact record of a rank: a full disk costs lines, not the run."""

from __future__ import annotations

import json

import pytest

from trainer.train.records import MetricsFile
from trainer.vote import Outcome, Verdict


def verdict(step: int) -> Verdict:
    return Verdict(Outcome.UPDATE, step, norm=1.0, loss=2.0, save=False)


class Filling:
    """A file that takes but part of a line, or nothing."""

    def __init__(self, file, takes: int) -> None:
        self._file, self._takes = file, takes
        self.name = file.name

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, line: bytes) -> int:
        if not self._takes:
            raise OSError(28, "No space left on device")
        return self._file.write(line[: self._takes])


@pytest.mark.parametrize("takes", [0, 9])
def test_lines_stay_whole_and_the_trouble_is_said_once(tmp_path, capsys, takes):
    metrics = MetricsFile(tmp_path, 3, attempt=1, batch_tokens=10)
    metrics.append(verdict(1))
    whole = metrics._file
    metrics._file = Filling(whole, takes)
    metrics.append(verdict(2))
    metrics.append(verdict(3))
    metrics._file = whole
    metrics.append(verdict(4))
    metrics.close()
    lines = (tmp_path / "metrics" / "rank-3.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]
    assert capsys.readouterr().err.count("training goes on") == 1
