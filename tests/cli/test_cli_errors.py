import pytest


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("describe", "tiny"),
        ("watch", "--once"),
        ("logs", "tiny"),
        ("cancel", "tiny"),
        ("node", "list"),
        ("node", "quarantine", "node-1"),
        ("incident", "list"),
        ("fault", "list"),
        ("fault", "inject", "node-1", "--kill-worker"),
        ("goodput", "tiny"),
    ],
)
def test_without_a_daemon_every_command_says_how_to_start_one(holdfast, state_dir, args):
    result = holdfast(*args)
    assert result.code == 5
    assert "No daemon answers at" in result.err
    assert "holdfast up" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "args",
    [
        ("status", "nobody"),
        ("describe", "nobody"),
        ("describe", "../health"),
        ("describe", ""),
        ("logs", "nobody"),
        ("logs", "tiny", "--rank", "99"),
        ("cancel", "nobody"),
        ("goodput", "nobody"),
        ("node", "show", "nobody"),
        ("node", "quarantine", "nobody"),
        ("node", "readmit", "nobody"),
        ("incident", "show", "inc-9"),
        ("incident", "list", "--run", "nobody"),
        ("fault", "inject", "nobody", "--kill-worker"),
        ("watch", "nobody", "--once"),
    ],
)
def test_what_is_not_there_is_code_4(holdfast, daemon, args):
    result = holdfast(*args)
    assert result.code == 4
    assert result.err.startswith("error: There is no") or "has no rank" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "args",
    [
        ("statsu",),
        ("status", "--nope"),
        ("status", "-o", "xml"),
        ("logs",),
        ("logs", "tiny", "--rank", "-1"),
        ("fault", "inject", "node-1"),
        ("fault", "inject", "node-1", "--kill-worker", "--stop-worker"),
        ("fault", "inject", "--kill-worker"),
        ("fault", "inject", "node-1", "--kill-worker", "--rank", "1"),
        ("up", "--nodes", "0"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_code_2(holdfast, args):
    result = holdfast(*args)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_refusal_is_code_1_with_its_reason(holdfast, daemon):
    result = holdfast("fault", "inject", "--run", "later", "--kill-worker")
    assert result.code == 1
    assert result.err.startswith("error: Rank 0 of 'later' is on no node now.\n  hint: waits for 8 nodes")


def test_a_failing_daemon_is_code_1(holdfast, daemon):
    daemon.live = None
    result = holdfast("status")
    assert result.code == 1
    assert "The daemon failed" in result.err
    assert "Traceback" not in result.err


def test_down_without_a_cluster_is_code_5(holdfast, state_dir):
    assert holdfast("down").code == 5
    assert not state_dir.exists()


def test_the_state_folder_can_come_from_the_environment(monkeypatch, tmp_path):
    from orchestrator.cli.main import default_state_dir

    monkeypatch.setenv("HOLDFAST_STATE", str(tmp_path))
    assert default_state_dir() == tmp_path
    monkeypatch.setenv("HOLDFAST_STATE", "")
    assert default_state_dir().parts[-2:] == (".holdfast", "default")
