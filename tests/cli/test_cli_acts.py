import json
import sys

import msgspec
import pytest
from api_fake_service import NOW, FakeService

from orchestrator.api.errors import UnavailableError
from orchestrator.api.service import LogText
from orchestrator.cli import doctor, passing
from orchestrator.recovery.state import RunPhase

SPEC = "name: x\nnodes: 4\nworkload: {command: [a.out]}\n"


@pytest.fixture(autouse=True)
def _me(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ann")


def test_submit_says_the_id_the_reason_and_the_warning(holdfast, daemon, tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    result = holdfast("submit", "x.yaml")
    assert result.code == 0
    assert result.out.splitlines() == [
        "x-2: It waits for 4 nodes: 1 is free.",
        "warning: No cluster is so big.",
        "Follow it with `holdfast watch x-2`.",
    ]
    assert daemon.calls == [("submit", "x", str(tmp_path / "x.yaml"))]
    assert json.loads(holdfast("submit", "x.yaml", "-o", "json").out)["run"] == "x-2"


def test_submit_shows_the_daemons_errors_with_a_caret(holdfast, daemon, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(SPEC.replace("nodes", "nodess"))
    result = holdfast("submit", str(path))
    assert result.code == 3
    assert (
        f"{path}:2:1: error: unknown key 'nodess'\n 2 | nodess: 4\n   | ^~~~~~\n   hint: did you mean 'nodes'?"
        in result.err
    )
    assert daemon.calls == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_spec_that_cannot_be_read_is_code_3(holdfast, daemon, tmp_path, content):
    if content is not None:
        (tmp_path / "x.yaml").write_bytes(content)
    result = holdfast("submit", str(tmp_path / "x.yaml"))
    assert result.code == 3
    assert "can't be read" in result.err


@pytest.mark.parametrize(("phase", "code"), [(RunPhase.COMPLETED, 0), (RunPhase.FAILED, 1), (RunPhase.CANCELLED, 1)])
def test_submit_and_wait_follows_the_run_to_its_end(holdfast, daemon: FakeService, tmp_path, monkeypatch, phase, code):
    (tmp_path / "x.yaml").write_text(SPEC)
    runs = daemon.the_state.runs
    daemon.the_state = msgspec.structs.replace(daemon.the_state, runs=runs.set("x-2", runs["later"]))

    def end(_seconds):
        run = runs["later"]
        closed = msgspec.structs.replace(run.ledger, closed=True)
        run = msgspec.structs.replace(run, phase=phase, reason="It is over.", finished_ns=NOW, ledger=closed)
        daemon.the_state = msgspec.structs.replace(daemon.the_state, runs=runs.set("x-2", run))

    monkeypatch.setattr("orchestrator.cli.spec.time.sleep", end)
    result = holdfast("submit", str(tmp_path / "x.yaml"), "--wait")
    assert result.code == code
    assert result.out.splitlines()[-2:] == [
        "pending: waits for 8 nodes: 1 is free, run tiny holds 2",
        f"{phase.value}: It is over.",
    ]


def test_validate_needs_no_daemon(holdfast, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(SPEC)
    result = holdfast("validate", str(path))
    assert result.code == 0
    assert "4 nodes x 1 ranks = 4 replicas x 1 shards, a command." in result.out
    path.write_text(SPEC + "env: {API_TOKEN: hunter2}\n")
    for form in ("table", "json", "yaml"):
        assert "hunter2" not in holdfast("validate", str(path), "-o", form).out


def test_validate_shows_every_mistake(holdfast, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: X\nnodes: four\nworkload: {command: []}\n")
    result = holdfast("validate", str(path))
    assert result.code == 3
    assert result.out == ""
    assert [line.split(":")[1] for line in result.err.splitlines() if ": error: " in line] == ["1", "2", "3"]
    as_json = holdfast("validate", str(path), "-o", "json")
    assert as_json.code == 3
    assert [e["line"] for e in json.loads(as_json.out)["errors"]] == [1, 2, 3]


def test_operators_act_under_their_own_name(holdfast, daemon):
    assert holdfast("cancel", "tiny", "--why", "enough").out == "tiny is cancelled by ann.\n"
    assert holdfast("node", "quarantine", "node-1", "--why", "smoke").out == "node-1 is taken out by ann: smoke.\n"
    assert holdfast("node", "readmit", "node-3").out == "node-3 is on probation.\n"
    assert daemon.calls == [
        ("cancel", "tiny", "ann", "enough"),
        ("quarantine", "node-1", "ann", "smoke"),
        ("readmit", "node-3", "ann", ""),
    ]


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (("node-1", "--gpu", "3", "--xid", "48"), ("inject", "node-1", "xid", {"xid": 48, "gpu": 3})),
        (("node-1", "--kill-worker"), ("inject", "node-1", "kill_worker", {})),
        (
            ("--stop-worker", "--run", "tiny", "--rank", "2"),
            ("inject", "node-2", "stop_worker", {"run": "tiny", "rank": 2}),
        ),
        (("node-1", "--kill-raylet"), ("inject", "node-1", "kill_raylet", {})),
        (("node-1", "--stop-raylet"), ("inject", "node-1", "stop_raylet", {})),
        (("node-1", "--kill-supervisor"), ("inject", "node-1", "kill_supervisor", {})),
    ],
)
def test_fault_inject(holdfast, daemon, args, call):
    assert holdfast("fault", "inject", *args).code == 0
    assert daemon.calls == [call]


def test_logs_are_written_as_they_are(holdfast, daemon):
    result = holdfast("logs", "tiny", "--rank", "1")
    assert result.code == 0
    assert result.out == "step 1\nstep 2\n"


def test_logs_are_followed_into_the_next_attempt(holdfast, daemon, monkeypatch):
    naps = []

    def nap(_seconds):
        naps.append(daemon.log_attempt)
        if len(naps) == 1:
            daemon.log += "step 3\n"
        elif len(naps) == 2:
            daemon.log, daemon.log_attempt = "step 2 again\n", 4
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.runs.time.sleep", nap)
    result = holdfast("logs", "tiny", "-f")
    assert result.code == 130
    assert result.out == "step 1\nstep 2\nstep 3\nstep 2 again\n"


def _end_tiny(daemon: FakeService):
    runs = daemon.the_state.runs
    run = msgspec.structs.replace(runs["tiny"], phase=RunPhase.COMPLETED, finished_ns=NOW)
    daemon.the_state = msgspec.structs.replace(daemon.the_state, runs=runs.set("tiny", run))


def test_following_ends_with_the_run(holdfast, daemon):
    _end_tiny(daemon)
    result = holdfast("logs", "tiny", "-f")
    assert (result.code, result.out) == (0, "step 1\nstep 2\n")


def test_following_goes_on_while_a_rank_has_no_node(holdfast, daemon, monkeypatch):
    read, naps = daemon.read_log, []

    async def nowhere(*_):
        raise UnavailableError("Rank 0 has no node now.")

    def nap(_seconds):
        naps.append(1)
        daemon.read_log = nowhere if len(naps) == 1 else read
        if len(naps) == 3:
            daemon.log += "step 3\n"
            _end_tiny(daemon)

    monkeypatch.setattr("orchestrator.cli.runs.time.sleep", nap)
    result = holdfast("logs", "tiny", "-f")
    assert (result.code, result.out) == (0, "step 1\nstep 2\nstep 3\n")


def test_a_large_log_comes_in_pieces(holdfast, daemon):
    async def piece(run, rank, attempt, offset):
        text = "0123456789"[offset : offset + 4]
        return LogText(text=text, next_offset=offset + len(text), attempt=3)

    daemon.read_log = piece
    assert holdfast("logs", "tiny").out == "0123456789"


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        (("data", "prepare", "--help", "-x"), ["-m", "trainer", "data", "prepare", "--help", "-x"]),
        (("simulate", "--seed", "7"), ["-m", "orchestrator.simulator", "--seed", "7"]),
    ],
)
@pytest.mark.parametrize(("ended", "code"), [(0, 0), (3, 3), (-9, 137)])
def test_other_programs_get_the_arguments_and_give_the_exit_code(holdfast, monkeypatch, args, argv, ended, code):
    seen = []

    def run(command, check):
        seen.append(command)
        return passing.subprocess.CompletedProcess(command, ended)

    monkeypatch.setattr(passing.subprocess, "run", run)
    assert holdfast(*args).code == code
    assert seen == [[sys.executable, *argv]]


def test_doctor_looks_at_this_machine(holdfast, daemon):
    result = holdfast("doctor", "--no-gpu", "-o", "json")
    checks = {c["check"]: c for c in json.loads(result.out)["checks"]}
    assert checks["python"]["ok"]
    assert checks["ray"]["found"][0].isdigit()
    assert checks["daemon"]["found"] == "epoch 4, 3 nodes"
    assert result.code == (0 if all(c["ok"] for c in checks.values()) else 1)
    table = holdfast("doctor", "--no-gpu").out
    assert "CHECK" in table
    assert "[green]" not in table


GRAVE = {"severity": "fatal", "sentence": "GPU 3 fell off the bus."}
MILD = {"severity": "warning", "sentence": "GPU 1 is warm."}


@pytest.mark.parametrize(
    ("stdout", "ok", "words"),
    [
        ('{"gpus": 0, "checks": [], "findings": [], "error": "no NVIDIA driver"}', True, "none: no NVIDIA driver"),
        (json.dumps({"gpus": 8, "findings": []}), True, "8 GPUs"),
        (json.dumps({"gpus": 8, "findings": [MILD]}), True, "0 of 1 findings are grave"),
        (json.dumps({"gpus": 8, "findings": [GRAVE, MILD]}), False, "GPU 3 fell off the bus."),
        (json.dumps({"gpus": 0, "findings": [GRAVE]}), False, "GPU 3 fell off the bus."),
        ("", False, "the health check failed: boom"),
        ("[]", False, "the health check failed: boom"),
    ],
)
def test_doctor_reads_the_health_checks_report(monkeypatch, stdout, ok, words):
    ended = doctor.subprocess.CompletedProcess([], 1, stdout, "Traceback ...\nboom\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **options: ended)
    check = doctor._gpus()
    assert check["ok"] is ok
    assert words in check["found"] + check["hint"]


def test_doctor_understands_the_real_health_check():
    """Whatever this machine has, the answer is no failure to read it."""
    assert "the health check failed" not in doctor._gpus()["found"]
