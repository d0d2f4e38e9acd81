from pathlib import Path

import pytest

from orchestrator.spec.errors import SpecError, SpecErrors
from orchestrator.spec.load import load_spec, parse_spec
from orchestrator.spec.trainer_check import Problem

GOOD = """\
name: tiny
nodes: 4
ranks_per_node: 1
mesh: {replicas: 2, shards: 2}
workload:
  command: [python, train.py]
env: {A: b}
"""


def mistakes(text: str, **options) -> list[SpecError]:
    with pytest.raises(SpecErrors) as caught:
        parse_spec(text, "run.yaml", **{"check": None, **options})
    return list(caught.value.errors)


@pytest.mark.parametrize(
    ("old", "new", "place", "message", "hint"),
    [
        ("nodes: 4", "nodess: 4", (2, 1), "unknown key 'nodess'", "did you mean 'nodes'?"),
        ("shards: 2}", "shard: 2}", (4, 21), "unknown key 'shard' in 'mesh'", "did you mean 'shards'?"),
        (
            "nodes: 4",
            'nodes: "4"',
            (2, 8),
            "'nodes' must be a whole number, not the text '4'",
            "write 4 without quotes",
        ),
        ("nodes: 4", "nodes: 4.0", (2, 8), "'nodes' must be a whole number, not 4.0", "write 4"),
        ("nodes: 4", "nodes: yes", (2, 8), "'nodes' must be a whole number, not true", ""),
        ("nodes: 4", "nodes:", (2, 7), "'nodes' must be a whole number, not nothing", ""),
        ("nodes: 4", "nodes: 0", (2, 8), "'nodes' must be at least 1, not 0", ""),
        ("nodes: 4", "nodes: 10000000", (2, 8), "'nodes' must be at most 1000000, not 10000000", ""),
        ("name: tiny", "name: Tiny Run", (1, 7), "'name' can't be the text 'Tiny Run'", "'tiny-run'"),
        ("{A: b}", "{A: 1}", (7, 10), "'env.A' must be a text, not 1", 'quote it: "1"'),
        ("{A: b}", "{A: on}", (7, 10), "'env.A' must be a text, not true", 'quote it: "true"'),
        ("{A: b}", "{9A: b}", (7, 7), "'9A' is no name of an environment variable", "digit"),
        ("[python, train.py]", "python train.py", (6, 12), "must be a list", "write [python, train.py]"),
        ("[python, train.py]", "[]", (6, 12), "'workload.command' must not be empty", ""),
        ("[python, train.py]", "[python, 1]", (6, 21), "'workload.command.1' must be a text", 'quote it: "1"'),
        ("  command", "  speaks_protocol: ture\n  command", (6, 20), "must be true or false", "did you mean true?"),
        ("env:", "nodes: 5\nenv:", (7, 1), "the key 'nodes' is given twice", "line 2"),
        ("env:", "mesh2:\n\tx: 1\nenv:", (8, 1), "not valid YAML", "tab"),
        ("env: {", "env: a: {", (7, 7), "not valid YAML: mapping values are not allowed", "quote"),
        ("env: {A", "env: [A", (7, 11), "not valid YAML", ""),
        ("env:", "---\nenv:", (7, 1), "not valid YAML", "one spec a file"),
        ("env: {A: b}", "env: !!python/object:os.system {}", (7, 6), "not valid YAML", ""),
        ("env: {A: b}", "env: &a {A: *a}", (7, 6), "an alias inside what it stands for", ""),
        ("env: {A: b}", "env: {A: *b}", (7, 10), "undefined alias", ""),
        ("env: {A: b}", "env: {[1]: b}", (7, 7), "a key must be a plain word", ""),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_likely_fix(old, new, place, message, hint):
    assert old in GOOD
    errors = mistakes(GOOD.replace(old, new, 1))
    found = next(e for e in errors if (e.line, e.column) == place)
    assert message in found.message
    assert hint in found.hint
    assert found.source == GOOD.replace(old, new, 1).splitlines()[place[0] - 1]


def test_all_mistakes_are_told_in_the_order_of_the_file():
    errors = mistakes("name: X\nnodes: 0\nfoo: 1\n")
    assert [(e.line, e.message.split("'")[1]) for e in errors] == [
        (1, "workload"),
        (1, "name"),
        (2, "nodes"),
        (3, "foo"),
    ]


def test_an_error_is_rendered_as_a_compiler_does():
    (error,) = mistakes(GOOD.replace("shards: 2", "shards: two"))
    assert error.render() == (
        "run.yaml:4:29: error: 'mesh.shards' must be a whole number, not the text 'two'\n"
        " 4 | mesh: {replicas: 2, shards: two}\n"
        "   |                             ^~~"
    )


def test_the_caret_stays_under_its_word_behind_a_tab():
    error = SpecError("f", 12, 3, "m", source="\t x: 1", width=1)
    assert error.render().splitlines()[1:] == [" 12 | \t x: 1", "    | \t ^"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "hello", "1", "~"])
def test_what_is_no_spec_says_so(text):
    (error,) = mistakes(text)
    assert (error.line, error.column) == (1, 1)
    assert error.hint


def test_aliases_cannot_blow_the_document_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (error,) = mistakes("\n".join(lines))
    assert "aliases followed" in error.message


@pytest.mark.parametrize("text", ["name: " + "[" * 5000, "name: " + "[" * 2000 + "]" * 2000, "- " * 3000 + "x"])
def test_deep_nesting_is_an_error_and_no_crash(text):
    (error,) = mistakes(text)
    assert "nested too deep" in error.message


def test_a_large_file_is_not_parsed():
    (error,) = mistakes("#" * (1 << 20) + "\nname: x")
    assert "larger than" in error.message


def test_characters_that_yaml_forbids_have_a_place():
    (error,) = mistakes("name: x\nnodes: \x07\n")
    assert (error.line, error.column) == (2, 8)


@pytest.mark.parametrize(
    ("mesh", "hint"),
    [
        ("{replicas: 1, shards: 2}", "replicas: 2 keeps these shards"),
        ("{replicas: 4, shards: 3}", "shards: 1 keeps these replicas"),
        ("{replicas: 3, shards: 3}", "{replicas: 4, shards: 1}"),
    ],
)
def test_a_mesh_that_is_not_the_world(mesh, hint):
    (error,) = mistakes(GOOD.replace("{replicas: 2, shards: 2}", mesh))
    assert (error.line, error.column) == (4, 1)
    assert "but 4 nodes x 1 ranks_per_node = 4" in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ("{}", "neither 'trainer' nor 'command'"),
        ("{command: [a], trainer: {steps: 1}}", "both 'trainer' and 'command'"),
        ("{trainer: {run_dir: /x}}", "'run_dir' is chosen by the daemon"),
        ("{trainer: {steps: 1}, speaks_protocol: false}", "always speaks the protocol"),
    ],
)
def test_a_workload_is_one_thing(workload, words):
    (error,) = mistakes(f"name: x\nnodes: 1\nworkload: {workload}\n")
    assert error.line == 3
    assert words in error.message


def test_a_batch_must_be_shared_out_evenly():
    text = "name: x\nnodes: 4\nworkload:\n  trainer: {data: {sequence_length: 256}, batch_tokens: 2000}\n"
    (error,) = mistakes(text)
    assert (error.line, error.column) == (4, 57)
    assert "4 ranks x sequence_length 256 = 1024 tokens" in error.message
    assert error.hint == "the nearest batches that do: 1024 and 2048"
    (small,) = mistakes(text.replace("2000", "100"))
    assert small.hint == "the smallest that does: 1024"


TRAINER = """\
name: x
nodes: 1
workload:
  trainer:
    model: {name: olmo_hybird}
    data:
      paths: [a.npy, 3]
    steps: "10"
"""


def test_what_the_trainer_says_is_put_where_it_belongs():
    said = [
        Problem("model", "unknown model 'olmo_hybird'; models are: olmo_hybrid, other"),
        Problem("data.paths[1]", "expected a text"),
        Problem("steps", "expected an integer"),
        Problem("batch_tokens", "is required"),
    ]
    errors = mistakes(TRAINER, check=lambda config, world: said)
    assert [(e.line, e.column, e.hint) for e in errors] == [
        (4, 3, ""),
        (5, 19, "did you mean 'olmo_hybrid'?"),
        (7, 22, ""),
        (8, 12, "write 10 without quotes"),
    ]


def test_the_trainer_is_asked_about_absolute_paths_and_the_world_size(tmp_path):
    asked = {}

    def check(config, world_size):
        asked.update(config, world_size=world_size)
        return []

    (tmp_path / "run.yaml").write_text(TRAINER.replace(", 3", ", ../b.npy, /c.npy"))
    load_spec(tmp_path / "run.yaml", check=check)
    assert asked["data"]["paths"] == [str(tmp_path / "a.npy"), str(tmp_path.parent / "b.npy"), "/c.npy"]
    assert asked["world_size"] == 1


def test_a_trainer_that_cannot_check_is_an_error_too(monkeypatch):
    monkeypatch.setattr("orchestrator.spec.trainer_check.sys.executable", "/bin/false")
    errors = mistakes(TRAINER, check=__import__("orchestrator.spec.trainer_check", fromlist=["x"]).check_trainer)
    assert "the trainer's check failed with exit code 1" in errors[0].message


def test_a_file_that_cannot_be_read(tmp_path: Path):
    for path, words in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SpecErrors, match=words):
            load_spec(path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SpecErrors, match="not UTF-8"):
        load_spec(tmp_path / "latin.yaml")
