from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import STEPS, Reference, Standby, Supervisor, digests, losses


def run_trainer(*argv: str, prefix: tuple[str, ...] = ("-m", "trainer"), **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *prefix, *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def test_torchrun_trains_the_same_bits(
    tmp_path: Path, write_config: Callable[..., Path], make_run: Callable[..., Supervisor]
) -> None:
    """One node of two ranks: the mesh is 1 x 2. Compared with the same mesh under a supervisor."""
    config = write_config(tmp_path)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "trainer")
    done = run_trainer("train", "--config", str(config), prefix=torchrun, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stderr
    run = make_run(1, 2)
    run.start()
    run.wait_completed()
    assert losses(tmp_path, ranks=2) == losses(run.folder, ranks=2)
    assert digests(tmp_path, ranks=2) == digests(run.folder, ranks=2)


def close(left: str, right: str) -> bool:
    return float.fromhex(left) == pytest.approx(float.fromhex(right), rel=1e-5)


@pytest.mark.parametrize(("replicas", "shards"), [(1, 2), (2, 1)])
def test_every_mesh_trains_the_same_model(
    replicas: int, shards: int, reference: Reference, make_run: Callable[..., Supervisor]
) -> None:
    """The sums are ordered otherwise, so not the same bits."""
    run = make_run(replicas, shards)
    run.start()
    run.wait_completed()
    for rank in losses(run.folder, ranks=2):
        for step, (loss, norm) in rank.items():
            assert close(loss, reference.losses[0][step][0])
            assert close(norm, reference.losses[0][step][1])


def test_a_single_process_trains_and_a_larger_world_goes_on_from_its_checkpoint(
    standby: Standby,
    reference: Reference,
    tmp_path: Path,
    write_config: Callable[..., Path],
    make_run: Callable[..., Supervisor],
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = write_config(folder, micro_batch_sequences=2)
    log = tmp_path / "log"
    assert standby.run(["train", "--config", str(config)], {}, log) == 0, log.read_text()
    (alone,) = losses(folder, ranks=1)
    assert all(close(loss, reference.losses[0][step][0]) for step, (loss, _) in alone.items())
    for later in ("step-00000006", f"step-{STEPS:08d}"):
        (folder / "checkpoints" / later).rename(folder / later)
    run = make_run(folder="run")
    run.start()
    run.wait_completed()
    resumed = losses(folder)[1]
    assert sorted(resumed) == list(range(4, STEPS + 1))
    assert all(close(loss, alone[step][0]) for step, (loss, _) in resumed.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"model": {"name": "gpt"}}, "gpt"),
        ({"data": {"paths": ["/nowhere/tokens.npy"], "sequence_length": 32}}, "/nowhere/tokens.npy"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(
    changes: dict, said: str, standby: Standby, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    if changes.get("device") == "cuda" and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    log = tmp_path / "log"
    assert standby.run(["train", "--config", str(write_config(tmp_path, **changes))], {}, log) == 3
    (line,) = log.read_text().splitlines()
    assert said in line


def test_a_supervisor_hears_of_a_bad_configuration(make_run: Callable[..., Supervisor]) -> None:
    run = make_run(model={"name": "gpt"})
    run.fork_rank(0)
    assert os.waitstatus_to_exitcode(run.wait_exit(0)) == 3
    assert [m["kind"] for m in run.of_type("fault")] == ["config"]
    assert [m["reason"] for m in run.of_type("bye")] == ["error"]


def test_a_world_that_cannot_share_the_batch_is_refused(make_run: Callable[..., Supervisor]) -> None:
    run = make_run(1, 3)
    run.start()
    for rank in range(3):
        assert os.waitstatus_to_exitcode(run.wait_exit(rank)) == 3
    assert {m["kind"] for m in run.of_type("fault")} == {"config"}


def test_other_data_is_refused_on_resume(
    reference: Reference, make_run: Callable[..., Supervisor], tokens: Path
) -> None:
    run = make_run(
        checkpoint={"path": str(reference.folder / "checkpoints")},
        data={"paths": [str(tokens)], "sequence_length": 32, "seed": 99},
    )
    run.start()
    for rank in range(4):
        run.wait_exit(rank)
    details = [m["detail"] for m in run.of_type("fault") if m["kind"] == "config"]
    assert details
    assert all("seed" in detail for detail in details)


def test_a_trainer_outlives_its_supervisors_death_only_for_seconds(make_run: Callable[..., Supervisor]) -> None:
    run = make_run()
    run.fork_rank(0)
    line = run.worker(0).line
    run.deafen()
    line.shutdown(2)
    assert os.waitstatus_to_exitcode(run.wait_exit(0)) == 75


def test_a_killed_store_process_is_seen_by_its_exit(make_run: Callable[..., Supervisor]) -> None:
    """Once the groups are formed the store is needed no more: training goes on."""
    run = make_run(1, 2)
    run.start()
    run.wait_step(1)
    os.kill(run.stores[0], signal.SIGKILL)
    run.wait_completed()


def test_params_counts_and_unknown_things_are_refused(standby: Standby, tmp_path: Path) -> None:
    assert "1,007,276" in run_trainer("params", "olmo_hybrid_1m").stdout
    assert standby.run(["params", "gpt"], {}, tmp_path / "log") == 3
    assert "olmo_hybrid_1m" in (tmp_path / "log").read_text()
    assert run_trainer("dance").returncode == 2
    assert run_trainer("check", "/nowhere.yaml").returncode == 4
