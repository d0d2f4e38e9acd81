"""Checkpoints through the trainer: tiers, kinds, meshes and damage, by what runs say and leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import STEPS, Reference, Supervisor, digests, losses

from trainer.checkpoint.digest import json_digest
from trainer.checkpoint.manifest import read_manifest

MakeRun = Callable[..., Supervisor]


def flip_unseen(path: Path) -> None:
    """Turn a bit and leave size and times: no mark shows it."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def sources(run: Supervisor) -> set[tuple[str, int]]:
    found = [m for m in run.of_type("phase") if m["phase"] == "train" and m["attempt"] == run.attempt]
    return {(m["source"], m["step"]) for m in found}


def details(run: Supervisor) -> set[str]:
    found = [m for m in run.of_type("phase") if m["phase"] == "train" and m["attempt"] == run.attempt]
    return {m.get("detail", "") for m in found}


def copy_up_to(source: Path, target: Path, step: int) -> None:
    for path in source.glob("step-*"):
        if int(path.name.removeprefix("step-")) <= step:
            shutil.copytree(path, target / path.name)


def test_the_manifest_names_the_model_and_the_kind(reference: Reference) -> None:
    meta = read_manifest(reference.folder / "checkpoints" / "step-00000003").meta
    assert meta.model == {"name": "olmo_hybrid_tiny", "overrides": {}}
    assert meta.kind == "permanent"
    assert len(meta.config_sha256) == 64


def test_ephemeral_checkpoints_between_permanent_ones(make_run: MakeRun) -> None:
    run = make_run(1, 2, checkpoint={"interval_steps": 4, "ephemeral_interval_steps": 1})
    run.start()
    run.wait_completed()
    assert {m["step"] for m in run.of_type("checkpoint")} == set(range(1, STEPS + 1))
    left = sorted((run.folder / "checkpoints").glob("step-*"))
    kinds = {int(path.name.removeprefix("step-")): read_manifest(path).meta.kind for path in left}
    assert {step for step, kind in kinds.items() if kind == "permanent"} == {4, STEPS}
    assert {step for step, kind in kinds.items() if kind == "ephemeral"} <= {5, 6}


def test_damage_that_only_one_rank_reads_takes_all_back(reference: Reference, make_run: MakeRun) -> None:
    """Shard 1 of the newest one, its mark still there: rank 1 and rank 3 find it, and all four go back together."""
    run = make_run()
    copy_up_to(reference.folder / "checkpoints", run.folder / "checkpoints", 6)
    flip_unseen(run.folder / "checkpoints" / "step-00000006" / "shard-00001-of-00002.safetensors")
    run.start()
    run.wait_completed()
    [rejected] = run.of_type("checkpoint_rejected")
    assert "step-00000006" in rejected["path"]
    assert "shard-00001-of-00002.safetensors has another digest" in rejected["why"]
    assert sources(run) == {("checkpoint", 3)}
    assert digests(run.folder) == reference.digests


def test_a_checkpoint_of_another_version_is_not_passed_over(reference: Reference, make_run: MakeRun) -> None:
    run = make_run()
    copy_up_to(reference.folder / "checkpoints", run.folder / "checkpoints", 3)
    path = run.folder / "checkpoints" / "step-00000003" / "manifest.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    body["format"] = 1
    path.write_text(json.dumps({**body, "sha256": json_digest(body)}))
    run.start()
    fault = run.wait(lambda pid, m: m["type"] == "fault" and m["kind"] != "peer")
    assert "has format 1, this version of Holdfast reads 2" in fault["detail"]
    assert fault["kind"] == "config"
    assert path.exists()


def test_the_local_tier_serves_a_restart_and_only_permanent_ones_go_on(
    reference: Reference, make_run: MakeRun, tmp_path: Path
) -> None:
    checkpoint = {"interval_steps": 4, "ephemeral_interval_steps": 1, "local_path": str(tmp_path / "disk")}
    run = make_run(checkpoint=checkpoint)
    run.start({1: [{"point": "forward", "step": 6, "do": "kill"}], 3: [{"point": "forward", "step": 6, "do": "kill"}]})
    run.wait_exit(1)
    run.wait_exit(3)
    run.recover([1, 3], restore="checkpoint")
    run.wait_completed()
    [(source, step)] = sources(run)
    assert source == "checkpoint"
    assert 4 <= step <= 5
    assert all("/disk/" in detail for detail in details(run))
    assert {path.name for path in (run.folder / "checkpoints").glob("step-*")} == {"step-00000004", "step-00000007"}
    assert digests(run.folder) == reference.digests


def test_a_lost_local_disk_takes_all_to_the_durable_tier(
    reference: Reference, make_run: MakeRun, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    checkpoint = {"interval_steps": 3, "ephemeral_interval_steps": 1, "local_path": str(disk)}
    run = make_run(checkpoint=checkpoint)
    run.start({rank: [{"point": "after_step", "step": 5, "do": "kill"}] for rank in range(4)})
    for rank in range(4):
        run.wait_exit(rank)
    for path in disk.glob("step-*/shard-00001-of-00002.safetensors"):
        path.unlink()
    run.recover([0, 1, 2, 3], restore="checkpoint")
    run.wait_completed()
    assert sources(run) == {("checkpoint", 3)}
    assert digests(run.folder) == reference.digests


def test_a_url_is_served_through_the_local_tier(make_run: MakeRun, tmp_path: Path) -> None:
    """A store in the trainer's own memory, gone with it: what the next run finds is on the node's disk."""
    checkpoint = {"interval_steps": 3, "path": "memory://bucket/run", "local_path": str(tmp_path / "disk")}
    first = make_run(1, 1, folder="first", steps=6, checkpoint=checkpoint)
    first.start()
    first.wait_completed()
    said = {m["step"]: m["path"] for m in first.of_type("checkpoint")}
    assert said == {step: f"memory:///bucket/run/step-{step:08d}.attempt-1" for step in (3, 6)}
    second = make_run(1, 1, folder="second", steps=STEPS, checkpoint=checkpoint)
    second.start()
    second.wait_completed()
    assert sources(second) == {("checkpoint", 6)}
    assert {m["step"] for m in second.of_type("checkpoint")} == {3, 6, 7}, "what the store lacks is uploaded"


def test_a_url_that_cannot_be_used_ends_the_run_with_a_reason(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(1, 1, checkpoint={"path": "nonsense://bucket", "local_path": str(tmp_path / "disk")})
    run.start()
    fault = run.wait(lambda pid, m: m["type"] == "fault")
    assert fault["kind"] == "config"
    assert "checkpoint.path: nonsense://bucket can't be used" in fault["detail"]


def test_a_run_that_moves_from_mesh_to_mesh(make_run: MakeRun, tmp_path: Path) -> None:
    """Two more steps on each mesh, each from the checkpoint of the one before: the losses of a run that never moved."""
    found: dict[int, tuple[str, str]] = {}
    for number, (replicas, shards) in enumerate([(2, 2), (4, 1), (1, 2), (1, 1)]):
        last = min(2 * (number + 1), STEPS)
        run = make_run(
            replicas,
            shards,
            folder=f"run-{number}",
            steps=last,
            optimizer={"warmup_steps": STEPS + 1},
            checkpoint={"interval_steps": 100, "path": str(tmp_path / "moving")},
        )
        run.start()
        run.wait_completed()
        [of_rank, *_] = losses(run.folder, replicas * shards)
        found |= of_rank
        assert sources(run) == ({("init", 0)} if number == 0 else {("checkpoint", 2 * number)})
    still = make_run(folder="still", steps=STEPS, optimizer={"warmup_steps": STEPS + 1})
    still.start()
    still.wait_completed()
    expected = losses(still.folder)[0]
    for step in range(1, STEPS + 1):
        for moved, stayed in zip(found[step], expected[step], strict=True):
            assert float.fromhex(moved) == pytest.approx(float.fromhex(stayed), rel=2e-5)
