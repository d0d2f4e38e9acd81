"""Parts of the supervisor that need no supervisor."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_harness import join

from orchestrator.link.messages import ReadLog, WorkerStatus
from orchestrator.node import paths, protocol, testimony
from orchestrator.node.board import StatusBoard
from orchestrator.node.environment import trainer_environment
from orchestrator.node.fence import Fence, FenceError
from orchestrator.node.logs import MAX_CHUNK_BYTES, last_line, read_chunk
from orchestrator.node.paths import PathError
from orchestrator.node.processes import Exit, Reaper, leashed, spawn
from orchestrator.node.worker import Worker
from orchestrator.node.workload import WorkloadError, parse_workload

# --- fence


def test_the_highest_epoch_rules_and_is_remembered(tmp_path) -> None:
    fence = Fence(tmp_path / "epoch")
    assert [fence.admit(epoch) for epoch in (3, 3, 2, 5, 4)] == [True, True, False, True, False]
    assert Fence(tmp_path / "epoch").epoch == 5


def test_an_epoch_that_cannot_be_read_is_not_forgotten(tmp_path) -> None:
    (tmp_path / "epoch").write_text("")
    with pytest.raises(FenceError, match="remove it"):
        Fence(tmp_path / "epoch")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5))))
def test_each_run_has_its_own_attempts(orders: list[tuple[str, int]]) -> None:
    fence = Fence(Path("/nonexistent/epoch"))
    newest: dict[str, int] = {}
    for run, attempt in orders:
        assert fence.admit_attempt(run, attempt) == (attempt >= newest.get(run, 0))
        newest[run] = max(attempt, newest.get(run, 0))


# --- paths


def test_the_folder_for_sockets_is_short_private_and_the_same_again(tmp_path) -> None:
    long = tmp_path / ("x" * 200)
    folder = paths.runtime_dir(long)
    try:
        assert folder == paths.runtime_dir(long) != paths.runtime_dir(tmp_path)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(paths.worker_socket(folder, "n" * 300))) <= paths.SOCKET_PATH_BYTES
        assert paths.worker_socket(folder, "n" * 300) != paths.worker_socket(folder, "n" * 301)
        folder.chmod(0o750)
        with pytest.raises(PathError, match="0750"):
            paths.runtime_dir(long)
    finally:
        folder.rmdir()
        paths.runtime_dir(tmp_path).rmdir()


def test_a_link_in_place_of_the_folder_is_refused(tmp_path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PathError, match="not a folder"):
        paths.require_private(tmp_path / "link")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\0b", "-rf", ".hidden", "x" * 129, "a\n"])
def test_names_that_lead_elsewhere_are_no_runs(tmp_path, name: str) -> None:
    with pytest.raises(PathError):
        paths.run_dir(tmp_path, name)


# --- logs


def ask(**fields: object) -> ReadLog:
    given_fields = {"request": 1, "run": "r", "rank": 0, "attempt": 0, "offset": 0, **fields}
    return ReadLog(**given_fields)  # type: ignore[arg-type]


def written(folder: Path, attempt: int, data: bytes) -> Path:
    path = paths.rank_log(folder, "r", attempt, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


@given(text=st.text(max_size=200), limit=st.integers(4, 50))
def test_chunks_add_up_to_the_text(tmp_path_factory, text: str, limit: int) -> None:
    folder = tmp_path_factory.mktemp("node")
    data = text.encode()
    written(folder, 1, data)
    read, offset = "", 0
    while offset < len(data):
        chunk = read_chunk(folder, ask(offset=offset, limit=limit))
        assert chunk.next_offset > offset
        read, offset = read + chunk.text, chunk.next_offset
    assert read == text


def test_the_newest_attempt_is_read_and_chunks_are_bounded(tmp_path) -> None:
    written(tmp_path, 9, b"old")
    written(tmp_path, 10, b"x" * (MAX_CHUNK_BYTES + 10))
    chunk = read_chunk(tmp_path, ask(limit=10**9))
    assert (chunk.attempt, len(chunk.text)) == (10, MAX_CHUNK_BYTES)
    assert read_chunk(tmp_path, ask(offset=-5)).text == "xxxxx"
    assert read_chunk(tmp_path, ask(offset=10**9)).text == ""


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path) -> None:
    written(tmp_path, 1, b"\x80\x80\x80\x80\x80\xff" * 10)
    offset = 0
    for _ in range(60):
        chunk = read_chunk(tmp_path, ask(offset=offset, limit=4))
        offset = chunk.next_offset
    assert offset == 60


def test_the_last_line_is_the_last_that_says_something(tmp_path) -> None:
    assert last_line(written(tmp_path, 1, b"first\nlast words\n \n\n")) == "last words"
    assert last_line(tmp_path / "none") == ""


# --- what trainers say


def test_later_versions_are_passed_over_and_nonsense_is_named() -> None:
    assert protocol.decode(b'{"type":"telepathy","x":1}\n') is None
    said = protocol.decode(b'{"type":"left","attempt":1,"step":2,"new_field":[1]}')
    assert said == protocol.Left(attempt=1, step=2)
    for raw in (b"", b"[]", b"{}", b'{"type":"left"}', b'{"type":"left","attempt":"x","step":1}', b"\xff", b"NaN"):
        with pytest.raises(protocol.ProtocolError):
            protocol.decode(raw)


def test_a_status_counts_stalls_and_knows_no_infinities() -> None:
    worker = Worker("r", 0, 1, speaks=True, log_path=None)
    for step in (5, 6):
        said = protocol.Progress(
            attempt=1, step=step, loss=float("inf"), grad_norm=None, data_ms=1.5, checkpoint_ms=2.0, skipped=3
        )
        assert worker.take_progress(said, 100) == (step == 5)
    status = worker.status(130)
    assert (status.first_step, status.step, status.loss, status.grad_norm) == (5, 6, 0.0, 0.0)
    assert (status.data_ms_total, status.checkpoint_ms_total, status.skipped) == (3.0, 4.0, 3)
    assert (status.first_step_age_ns, status.age_ns) == (30, 30)
    worker.ask_join({"type": "join", "attempt": 2}, 2)
    status = worker.status(200)
    assert (status.attempt, status.phase, status.step, status.first_step, status.data_ms_total) == (
        2,
        "starting",
        0,
        0,
        0.0,
    )


def test_a_fault_before_the_first_join_belongs_to_the_attempt_to_come() -> None:
    worker = Worker("r", 0, 4, speaks=True, log_path=None)
    event = testimony.event_of(worker, "n0", protocol.Fault(attempt=0, kind="config", detail="d"))
    assert (event.attempt, event.fault, event.rank) == (4, "config", 0)
    assert testimony.event_of(worker, "n0", protocol.Fault(attempt=3, kind="peer")).attempt == 3


def test_a_step_that_is_said_again_counts_once() -> None:
    worker = Worker("r", 0, 1, speaks=True, log_path=None)
    said = protocol.Progress(attempt=1, step=5, data_ms=1.5)
    assert [worker.take_progress(said, 1), worker.take_progress(said, 2)] == [True, False]
    assert worker.status(3).data_ms_total == 1.5


# --- statuses on their way


def test_statuses_are_sent_at_once_when_urgent_and_else_together() -> None:
    sent: list[tuple[WorkerStatus, ...]] = []
    steps = {("r", 0): 0, ("r", 1): 0}

    def show(key: tuple[str, int]) -> WorkerStatus | None:
        step = steps.get(key)
        return None if step is None else WorkerStatus(run="r", attempt=1, rank=key[1], pid=1, phase="train", step=step)

    async def scenario() -> None:
        board = StatusBoard(show, sent.append)
        for step in range(1, 20):
            steps["r", 0] = steps["r", 1] = step
            board.changed(("r", 0), urgent=False)
            board.changed(("r", 1), urgent=False)
        assert sent == []
        board.changed(("r", 1), urgent=True)
        assert [[status.step for status in statuses] for statuses in sent] == [[19, 19]]
        board.changed(("r", 0), urgent=False)
        del steps["r", 0]
        board.changed(("r", 1), urgent=False)
        while len(sent) < 2:
            await asyncio.sleep(0.005)
        assert [status.rank for status in sent[1]] == [1]

    asyncio.run(scenario())


# --- environment and workload


def test_the_environment_of_a_rank() -> None:
    command = join(attempt=3, ranks=(5, 4), world_size=8, store_host="10.0.0.7", store_port=99)
    env = trainer_environment({"PATH": "/bin", "RANK": "x"}, {"MINE": "1"}, command, 5, socket=Path("/s"))
    expected = {
        "PATH": "/bin", "MINE": "1", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "99", "HOLDFAST_RUN": "r", "HOLDFAST_ATTEMPT": "3",
        "HOLDFAST_NODE": "n0", "HOLDFAST_WORKER_SOCKET": "/s", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert expected.items() <= env.items()
    assert "GLOO_SOCKET_IFNAME" not in env


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("node7", False)])
def test_on_one_machine_gloo_uses_loopback_unless_told_otherwise(host: str, here: bool) -> None:
    command = join(store_host=host)
    assert ("GLOO_SOCKET_IFNAME" in trainer_environment({}, {}, command, 0, socket=None)) is here
    chosen = trainer_environment({}, {"GLOO_SOCKET_IFNAME": "eth1"}, command, 0, socket=None)
    assert chosen["GLOO_SOCKET_IFNAME"] == "eth1"
    inherited = trainer_environment({"HOLDFAST_WORKER_SOCKET": "/s"}, {}, command, 0, socket=None)
    assert "HOLDFAST_WORKER_SOCKET" not in inherited


def test_who_speaks_the_protocol() -> None:
    assert parse_workload({"argv": ["train"], "log_dir": "/l"}).speaks
    assert not parse_workload({"command": ["sh"]}).speaks
    assert parse_workload({"command": ["sh"], "protocol": True}).speaks
    with pytest.raises(WorkloadError):
        parse_workload({"argv": ["train"], "protocol": False})


# --- processes


def test_how_processes_ended_and_whom_nobody_watches(tmp_path) -> None:
    async def scenario() -> None:
        reaper = Reaper()
        ended: list[int] = []

        def start(script: str) -> int:
            return spawn(["sh", "-c", script], env=os.environ, log_path=tmp_path / "log")

        scripts = {"exit 3": Exit(code=3), "kill -9 $$": Exit(signal=9), "true": Exit(code=0)}
        watched = {
            reaper.watch(pid := start(script), lambda p=pid: ended.append(p)): how for script, how in scripts.items()
        }
        stray = start("exit 7")
        while len(ended) < 3:
            await asyncio.sleep(0.005)
        assert {process: process.reap() for process in watched} == watched
        while os.path.exists(f"/proc/{stray}"):
            reaper.reap_strays()
            await asyncio.sleep(0.005)
        late = reaper.watch(stray, lambda: ended.append(stray))
        while stray not in ended:
            await asyncio.sleep(0.005)
        assert late.reap() == Exit(code=7)

    asyncio.run(scenario())


def test_a_process_that_is_no_child_is_watched_without_its_exit(tmp_path) -> None:
    async def scenario() -> None:
        with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE) as parent:
            assert parent.stdout
            pid = int(parent.stdout.readline())
            ended = asyncio.Event()
            process = Reaper().watch(pid, ended.set)
            process.send_signal(9)
            await asyncio.wait_for(ended.wait(), 20)
            assert process.reap() == Exit()
            assert not process.alive

    asyncio.run(scenario())


def test_a_leashed_command_whose_parent_is_gone_does_not_start(tmp_path) -> None:
    command = [*leashed(["echo", "ran"])]
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    done = subprocess.run(leashed(["echo", "ran"]), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert sys.executable in command[0]
