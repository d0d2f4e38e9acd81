"""The real controller and the real core through many seeded histories."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import planted
import pytest

from orchestrator.simulator.__main__ import main
from orchestrator.simulator.cluster import CrashPlan
from orchestrator.simulator.explore import explore, replay_command
from orchestrator.simulator.run import Outcome, simulate

SEEDS = 1000


def test_a_thousand_seeds_break_nothing():
    said: list[str] = []
    found = explore(range(SEEDS), say=said.append)
    assert found.failures == (), "\n".join(said)
    assert found.seeds == SEEDS
    # The histories were worth simulating.
    assert found.recoveries > SEEDS
    assert found.restarts > SEEDS // 4
    assert found.phases["completed"] > SEEDS


def test_the_same_seed_has_the_same_history():
    assert simulate(11) == simulate(11)
    assert simulate(11).digest != simulate(12).digest


def test_a_history_does_not_depend_on_the_hash_seed():
    """The order of sets and maps of strings differs between processes; decisions must not."""
    program = "from orchestrator.simulator.run import simulate\nfor seed in range(40): print(simulate(seed).digest)"
    digests = []
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.append(done.stdout.split())
    assert len(digests[0]) == 40
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def eventful() -> Outcome:
    """The first history with several recoveries, in which the daemon does not die by itself."""
    outcomes = (simulate(seed) for seed in range(1000))
    return next(o for o in outcomes if o.ok and o.restarts == 0 and o.recoveries >= 3 and o.decisions < 90)


@pytest.mark.parametrize("point", ["before_write", "after_write", "in_execute"])
def test_the_daemon_may_die_at_any_entry(point, eventful):
    """At every write of a history; it ends well each time, with the same runs."""
    for write in range(1, eventful.decisions + 1):
        outcome = simulate(eventful.seed, crash=CrashPlan(point=point, writes=write, orders=write % 3))
        assert outcome.ok, (eventful.seed, write, outcome.violations)
        assert outcome.phases.keys() == eventful.phases.keys()
        assert outcome.restarts >= 1 or write == eventful.decisions


BUGS = {
    planted.stale_attempt: "JoinGang for attempt",
    planted.spare_not_taken: "free nodes",
    planted.quarantined_kept: "quarantined",
    planted.second_lost: "ledger",
    planted.never_ends: "never ends",
    planted.ends_early: "have not all finished",
    planted.trainers_left_behind: "still lives",
    planted.without_deadlines: "deadline 0",
    planted.queue_forgotten: "queue",
}


@pytest.mark.parametrize(("bug", "said_of_it"), BUGS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_caught_and_its_seed_replays(bug, said_of_it, monkeypatch, capsys):
    said: list[str] = []
    found = explore(range(100), decide=bug, max_failures=1, say=said.append)
    assert found.failures, f"{bug.__doc__} was not noticed in 100 seeds"
    failure = found.failures[0]
    assert said_of_it in failure.violations[0]
    assert simulate(failure.seed).ok
    command = said[0].split("replay: ")[1]
    assert command == replay_command(failure.seed)

    monkeypatch.setattr("orchestrator.recovery.decide.decide", bug)
    program, arguments = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "orchestrator.simulator"]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert f"broken: {failure.violations[0]}" in printed
    assert failure.digest[:16] in printed


def test_a_decide_with_a_memory_of_its_own_is_caught():
    found = explore(range(100), decide=planted.make_forgetful(), max_failures=1, say=lambda text: None)
    assert found.failures


def test_an_exploration_without_failures_says_how_fast_it_was(capsys):
    assert main(["--start", "3", "--seeds", "5"]) == 0
    assert "5 seeds, 0 failing" in capsys.readouterr().out


def test_a_trace_has_a_reason_for_every_decision(capsys):
    assert main(["--seed", "3", "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    decisions = [line for line in lines if line[:9].strip().replace(".", "").isdigit()]
    assert len(decisions) == simulate(3).decisions
    assert any("run_submitted" in line for line in decisions)


def test_trace_needs_a_seed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--trace"])
    assert ended.value.code == 2
