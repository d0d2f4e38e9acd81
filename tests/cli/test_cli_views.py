import json

import msgspec
import pytest
import yaml
from api_fake_service import NOW

LISTS = [
    ("status",),
    ("status", "tiny"),
    ("describe", "tiny"),
    ("goodput", "tiny"),
    ("node", "list"),
    ("node", "show", "node-3"),
    ("incident", "list"),
    ("incident", "show", "inc-1"),
    ("fault", "list"),
]


@pytest.mark.parametrize("args", LISTS)
def test_every_view_comes_as_table_json_and_yaml(holdfast, daemon, args):
    as_json = json.loads(holdfast(*args, "-o", "json").out)
    as_yaml = yaml.safe_load(holdfast(*args, "-o", "yaml").out)
    assert as_json == as_yaml
    table = holdfast(*args)
    assert table.code == 0
    assert table.err == ""
    assert "None" not in table.out
    assert "{" not in table.out


def test_status_says_state_figures_and_why(holdfast, daemon):
    lines = holdfast("status").out.splitlines()
    assert lines[0].split() == ["RUN", "STATE", "STEP", "LOSS", "UPTIME", "NODES", "RECOVERIES", "SUBMITTED", "WHY"]
    assert lines[1].split()[:7] == ["tiny", "recovering", "91", "2.5000", "98.80%", "2", "2"]
    assert lines[1].rstrip().endswith("16 min 40 s ago  node-2 can't be reached.")
    assert "waits for 8 nodes" in lines[2]
    assert len(holdfast("status", "later").out.splitlines()) == 2


def test_an_empty_cluster_says_what_to_do(holdfast, daemon):
    daemon.the_state = type(daemon.the_state)()
    daemon.journal = []
    assert "holdfast submit" in holdfast("status").out
    assert "no nodes yet" in holdfast("node", "list").out
    assert holdfast("incident", "list").out == "There were no incidents.\n"
    assert holdfast("watch", "--once").code == 0


def test_describe_has_every_part(holdfast, daemon):
    out = holdfast("describe", "tiny").out
    for part in ("Placement", "Ledger", "Incidents", "Last decisions"):
        assert part in out
    assert "Rank 1 died: the others leave the gang." in out
    assert "2 of at most 100" in out
    assert "step 50" in out
    assert "node-2  2 to 3" in out


def test_names_in_brackets_are_not_markup(holdfast, daemon):
    nodes = daemon.the_state.nodes
    odd = msgspec.structs.replace(nodes["node-3"], reason="[red]hot[/] [link=x]")
    daemon.the_state = msgspec.structs.replace(daemon.the_state, nodes=nodes.set("node-3", odd))
    assert "[red]hot[/] [link=x]" in holdfast("node", "list").out


def test_a_lost_node_is_absent_and_a_quarantined_one_says_why(holdfast, daemon):
    lines = holdfast("node", "list").out.splitlines()
    assert lines[1].split()[:4] == ["node-1", "healthy", "in", "tiny"]
    assert lines[2].split()[1] == "absent"
    assert lines[3].split()[1] == "quarantined"
    assert lines[3].rstrip().endswith("GPU 3 had a double-bit error.")
    assert "reset gpu" in holdfast("node", "show", "node-3").out


def test_an_incident_is_a_story_with_a_bar(holdfast, daemon):
    out = holdfast("incident", "show", "inc-1").out
    assert "worker exited on node-1, rank 1" in out
    assert "Rank 1 on node-1 was ended by signal 9." in out
    assert "recovered in 750 ms" in out
    assert "2 steps lost: 50 done before, went on from 48." in out
    assert "█" * 60 in out
    open_one = holdfast("incident", "show", "inc-2").out
    assert "recovering for 2.0 s" in open_one
    assert "Meanwhile also: xid 48 node-1." in open_one


def test_goodput_lists_causes_by_size_and_the_total(holdfast, daemon):
    lines = holdfast("goodput", "tiny").out.splitlines()
    assert lines[0].startswith("98.80% of 16 min 40 s")
    assert [line.split()[0] for line in lines[3:]] == ["training", "start", "detect", "total"]


def test_watch_once_is_one_picture(holdfast, daemon):
    for args in (("watch", "--once"), ("watch", "tiny", "--once")):
        out = holdfast(*args).out
        assert "RUN" in out
        assert "NODE" in out
        assert "DECISION AND WHY" in out


def test_watch_of_a_run_ends_with_it(holdfast, daemon):
    runs = daemon.the_state.runs
    closed = msgspec.structs.replace(runs["tiny"].ledger, closed=True)
    ended = msgspec.structs.replace(runs["tiny"], finished_ns=NOW, ledger=closed)
    daemon.the_state = msgspec.structs.replace(daemon.the_state, runs=runs.set("tiny", ended))
    assert "tiny" in holdfast("watch", "tiny").out
