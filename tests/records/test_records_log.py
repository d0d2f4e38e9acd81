"""The log for people: whole lines, no step twice, and no failure of it reaches the run."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

from trainer.config import LogConfig, TrainConfig, WandbConfig
from trainer.model.flops import training_flops
from trainer.model.presets import model_config
from trainer.records import json_lines, run_log
from trainer.records.json_lines import JsonLines
from trainer.records.run_log import RunLog
from trainer.vote import Outcome, Verdict


def verdict(step: int, loss: float = 2.0) -> Verdict:
    return Verdict(Outcome.UPDATE, step, norm=1.0, loss=loss, save=False)


def config(run_dir: Path, **log) -> TrainConfig:
    return TrainConfig(run_dir=str(run_dir), steps=10, batch_tokens=1000, log=LogConfig(**log))


def log_step(log: RunLog, step: int, loss: float = 2.0) -> None:
    log.step(verdict(step, loss), lr=1e-3, skipped=0, step_ms=500.0, data_ms=1.0, checkpoint_ms=0.0)


def lines(run_dir: Path, name: str = "log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def begun(run_dir: Path, attempt: int = 1, rank: int = 0, step: int = 0, **log) -> RunLog:
    found = RunLog(config(run_dir, **log), model_config("olmo_hybrid_tiny", {}))
    found.begin(attempt, rank, 2, step)
    return found


def test_mfu_is_given_where_the_gpus_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "_device_name", lambda: "NVIDIA H100 80GB HBM3")
    begun(tmp_path).step(verdict(1), lr=1e-3, skipped=0, step_ms=1e-3, data_ms=0.0, checkpoint_ms=0.0)
    found = lines(tmp_path)[0]
    six_n = training_flops(model_config("olmo_hybrid_tiny"), 256).six_n
    assert found["mfu"] == pytest.approx(1e9 / 2 * six_n / 989.4e12, abs=1e-4)
    assert 0.01 < found["mfu"] < found["mfu_model"]


def test_a_line_says_what_a_step_was(tmp_path):
    log = begun(tmp_path)
    log_step(log, 1)
    log_step(log, 2, loss=float("nan"))
    log.evaluation(2, {"wiki": {"perplexity": 3.0}}, 0.5)
    first, second, evaluation = lines(tmp_path)
    assert (first["step"], first["attempt"], first["tokens"], first["tokens_per_s"]) == (1, 1, 1000, 2000.0)
    assert first["memory_gib"] > 0
    assert second["loss"] is None
    assert (evaluation["kind"], evaluation["step"]) == ("evaluation", 2)
    assert evaluation["results"] == {"wiki": {"perplexity": 3.0}}


def test_only_rank_0_writes(tmp_path):
    log = begun(tmp_path, rank=1)
    log_step(log, 1)
    assert not (tmp_path / "log.jsonl").exists()
    assert not log.evaluated(1)


def test_steps_made_again_replace_their_lines(tmp_path):
    log = begun(tmp_path)
    for step in range(1, 6):
        log_step(log, step)
        if step in (2, 4):
            log.evaluation(step, {}, 0.1)
    log.begin(2, 0, 2, 2)
    assert log.evaluated(2)
    for step in range(3, 5):
        log_step(log, step)
    assert [(m["kind"], m["step"], m["attempt"]) for m in lines(tmp_path)] == [
        ("step", 1, 1),
        ("step", 2, 1),
        ("evaluation", 2, 1),
        ("step", 3, 2),
        ("step", 4, 2),
    ]
    superseded = lines(tmp_path, "log.superseded.jsonl")
    assert [(m["kind"], m["step"]) for m in superseded] == [("step", 3), ("step", 4), ("evaluation", 4), ("step", 5)]


def test_a_new_process_goes_on_behind_the_old_ones_lines(tmp_path):
    log = begun(tmp_path)
    for step in (1, 2, 3):
        log_step(log, step)
    log.end()
    other = begun(tmp_path, attempt=2, step=3)
    log_step(other, 3)  # finished during the recovery, and written before it already
    log_step(other, 4)
    assert [(m["step"], m["attempt"]) for m in lines(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert not (tmp_path / "log.superseded.jsonl").exists()


@pytest.mark.parametrize("block", [7, 64, 1 << 16])
def test_lines_are_found_whatever_the_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_lines, "_BLOCK", block)
    log = begun(tmp_path)
    for step in range(1, 20):
        log_step(log, step)
    log.begin(2, 0, 2, 7)
    assert [m["step"] for m in lines(tmp_path)] == list(range(1, 8))
    assert [m["step"] for m in lines(tmp_path, "log.superseded.jsonl")] == list(range(8, 20))


@pytest.mark.parametrize("torn", [b'{"kind": "step", "st', b"\n\nnot ours\n{"])
def test_a_torn_last_line_is_cut(tmp_path, torn):
    log_step(begun(tmp_path), 1)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn)
    log_step(begun(tmp_path, step=1), 2)
    text = (tmp_path / "log.jsonl").read_bytes()
    assert text.endswith(b"\n")
    assert [json.loads(line)["step"] for line in text.splitlines() if line.startswith(b"{")] == [1, 2]


def test_a_full_disk_costs_lines_not_the_run(tmp_path, monkeypatch, capsys):
    log = begun(tmp_path)
    log_step(log, 1)
    whole = os.pwrite
    monkeypatch.setattr(json_lines.os, "pwrite", lambda fd, line, at: whole(fd, line[:10], at))
    for step in (2, 3):
        log_step(log, step)
    monkeypatch.undo()
    log_step(log, 4)
    assert [m["step"] for m in lines(tmp_path)] == [1, 4]
    said = capsys.readouterr().err
    assert said.count("training goes on") == 1
    assert "the disk is full" in said


def test_a_folder_that_cannot_be_made_costs_the_log_not_the_run(tmp_path, capsys):
    (tmp_path / "run").write_text("in the way")
    log = begun(tmp_path / "run", tensorboard=True)
    for step in (1, 2):
        log_step(log, step)
    log.end()
    said = capsys.readouterr().err
    assert said.count("log.jsonl: ") == said.count("tensorboard: ") == 1


def test_tensorboard_gets_scalars_and_forgets_steps_made_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = begun(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        log_step(log, step, loss=float(step))
    log.begin(2, 0, 2, 1)
    log_step(log, 2, loss=20.0)
    log.evaluation(2, {"wiki": {"perplexity": 3.0, "bits_per_byte": None}}, 0.5)
    log.end()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]
    assert [e.value for e in events.Scalars("evaluation/wiki/perplexity")] == [3.0]
    assert "evaluation/wiki/bits_per_byte" not in events.Tags()["scalars"]


def test_a_missing_tensorboard_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = begun(tmp_path, tensorboard=True)
    log_step(log, 1)
    assert capsys.readouterr().err.count("pip install tensorboard") == 1
    assert len(lines(tmp_path)) == 1


class FakeWandb(types.ModuleType):
    """Records what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict] = []
        self.points: list[dict] = []
        self.finished = 0

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = step_metric

    def log(self, point: dict) -> None:
        self.points.append(point)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_resumes_one_run_over_attempts_and_processes(tmp_path, wandb):
    settings = WandbConfig(project="p", entity="e", mode="offline")
    for attempt in (1, 2):
        log = begun(tmp_path, attempt=attempt, step=attempt, wandb=settings)
        log_step(log, 1 + attempt)
        log.end()
    assert {each["id"] for each in wandb.inits} == {(tmp_path / "wandb-run-id").read_text().strip()}
    assert [(each["project"], each["entity"], each["mode"], each["resume"]) for each in wandb.inits] == [
        ("p", "e", "offline", "allow")
    ] * 2
    assert [(point["train_step"], point["attempt"], point["train/loss"]) for point in wandb.points] == [
        (2, 1, 2.0),
        (3, 2, 2.0),
    ]
    assert (wandb.axis, wandb.finished) == ("train_step", 2)


def test_the_api_key_goes_nowhere(tmp_path, wandb, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")

    def refuse(**settings):
        wandb.inits.append(settings)
        raise SystemExit("bad key secret-key")

    monkeypatch.setattr(wandb, "init", refuse)
    log = begun(tmp_path, wandb=WandbConfig(project="p"))
    log_step(log, 1)
    log.end()
    captured = capfd.readouterr()
    assert "wandb: SystemExit; training goes on" in captured.err
    assert "secret" not in captured.out + captured.err + json.dumps(wandb.inits) + (tmp_path / "log.jsonl").read_text()


def test_a_missing_wandb_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = begun(tmp_path, wandb=WandbConfig(project="p"))
    for step in (1, 2):
        log_step(log, step)
    log.end()
    assert capsys.readouterr().err.count("pip install wandb") == 1
    assert len(lines(tmp_path)) == 2


def test_lines_of_others_are_left_alone(tmp_path):
    (tmp_path / "log.jsonl").write_text("# a note\n")
    sink = JsonLines(tmp_path / "log.jsonl")
    sink.begin(0)
    sink.write({"kind": "step", "step": 1})
    assert (tmp_path / "log.jsonl").read_text() == '# a note\n{"kind": "step", "step": 1}\n'
