import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.node.workload import parse_workload
from orchestrator.spec.document import dump, parse
from orchestrator.spec.errors import SpecErrors
from orchestrator.spec.load import parse_spec
from orchestrator.spec.model import RunSpec
from orchestrator.spec.secrets import is_secret
from orchestrator.spec.shapes import notes

COMMAND = "name: c\nnodes: 2\nranks_per_node: 8\nworkload: {command: [python, train.py, --n, '1']}\n"
TRAINER = """\
name: t
nodes: 4
mesh: {replicas: 2, shards: 2}
priority: 3
max_recoveries: 7
workload:
  trainer:
    data: {paths: [a.npy], sequence_length: 64}
    checkpoint: {path: ckpt}
    optimizer: {lr: 3e-4, eps: 1e-8}
    batch_tokens: 256
env: {HF_TOKEN: hunter2, MODE: fast}
"""


def spec_of(text: str, folder: Path = Path("/specs")) -> RunSpec:
    return parse_spec(text, str(folder / "run.yaml"), check=None)


def test_the_plan_is_what_the_core_needs():
    plan = spec_of(TRAINER).plan()
    assert (plan.nodes, plan.ranks_per_node, plan.replicas, plan.shards, plan.world_size) == (4, 1, 2, 2, 4)
    assert (plan.priority, plan.max_recoveries, plan.speaks_protocol) == (3, 7, True)


def test_the_mesh_is_one_replica_a_node_by_default():
    plan = spec_of(COMMAND).plan()
    assert (plan.replicas, plan.shards, plan.speaks_protocol) == (2, 8, False)


def test_a_command_may_speak_the_protocol():
    spec = spec_of(COMMAND.replace("{command", "{speaks_protocol: true, command"))
    assert spec.plan().speaks_protocol
    assert parse_workload(spec.workload("/runs/c")).speaks


def test_the_trainers_workload_is_a_command_line_of_the_standby():
    work = spec_of(TRAINER).workload("/runs/t")
    assert work == {
        "run_dir": "/runs/t",
        "argv": ["train", "--config", "/runs/t/trainer.yaml"],
        "command": [],
        "env": {"HF_TOKEN": "hunter2", "MODE": "fast"},
        "protocol": True,
    }
    assert parse_workload(work).speaks


def test_words_of_a_command_that_name_files_beside_the_spec_become_absolute(tmp_path):
    (tmp_path / "train.py").touch()
    work = spec_of(COMMAND, tmp_path).workload("/runs/c")
    assert work["command"] == ["python", str(tmp_path / "train.py"), "--n", "1"]
    assert not parse_workload(work).speaks
    assert spec_of(COMMAND).workload("/runs/c")["command"][1] == "train.py"


def test_the_trainers_file_has_absolute_paths_and_the_run_dir(tmp_path):
    run_dir = tmp_path / "runs" / "t"
    spec_of(TRAINER).write_files(run_dir)
    written = yaml.safe_load((run_dir / "trainer.yaml").read_text())
    assert written["run_dir"] == str(run_dir)
    assert written["data"]["paths"] == ["/specs/a.npy"]
    assert written["checkpoint"]["path"] == "/specs/ckpt"
    assert written["optimizer"] == {"lr": 3e-4, "eps": 1e-8}
    assert [p.name for p in run_dir.iterdir()] == ["trainer.yaml"]
    assert stat.S_IMODE((run_dir / "trainer.yaml").stat().st_mode) & 0o077 == 0


def test_paths_of_held_out_sets_and_label_masks_begin_at_the_spec_too():
    more = """\
    evaluation:
      tokenizer: TOKENIZER
      sets:
        - {name: a, texts: [held/*.jsonl]}
        - {name: b, mix: mix.txt}
    batch_tokens: 256
"""
    data = "data: {paths: ['tokens/**/*.npy'], label_masks: [masks], mix_base: s3://bucket, "
    text = TRAINER.replace("    batch_tokens: 256\n", more).replace("data: {paths: [a.npy], ", data)
    found = spec_of(text.replace("TOKENIZER", "t/tokenizer.json")).trainer_config("/runs/t")
    assert found["data"]["paths"] == ["/specs/tokens/**/*.npy"]
    assert (found["data"]["label_masks"], found["data"]["mix_base"]) == (["/specs/masks"], "s3://bucket")
    assert found["evaluation"]["tokenizer"] == "/specs/t/tokenizer.json"
    assert found["evaluation"]["sets"] == [
        {"name": "a", "texts": ["/specs/held/*.jsonl"]},
        {"name": "b", "mix": "/specs/mix.txt"},
    ]
    assert spec_of(text.replace("TOKENIZER", "byte")).trainer_config("/runs/t")["evaluation"]["tokenizer"] == "byte"


def test_first_weights_beside_the_spec_are_found():
    text = TRAINER.replace("    batch_tokens: 256\n", "    batch_tokens: 256\n    init_from: weights/olmo\n")
    assert spec_of(text).trainer_config("/runs/t")["init_from"] == "/specs/weights/olmo"


def test_a_command_writes_no_trainers_file(tmp_path):
    spec_of(COMMAND).write_files(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_secrets_are_in_the_workload_and_nowhere_else(tmp_path):
    spec = spec_of(TRAINER)
    spec.write_files(tmp_path)
    shown = [str(spec.public()), repr(spec), str(spec), (tmp_path / "trainer.yaml").read_text(), str(spec.plan())]
    assert not any("hunter2" in text for text in shown)
    assert spec.public()["env"] == {"HF_TOKEN": "(hidden)", "MODE": "fast"}


@pytest.mark.parametrize(
    "env",
    [
        "env: {HF_TOKEN: [4711]}",
        "env: {HF_TOKEN: 4711}",
        "env:\n  HF_TOKEN: 4711",
        "env:\n  HF_TOKEN:\n    - 4711",
        "env:\n  HF_TOKEN:\n# a note\n    x: 4711",
        "env:\n  HF_TOKEN: *4711",
        "env:\n  HF_TOKEN: !4711 x",
        "env:\n  HF_TOKEN: a: 4711",
        'env: {HF_TOKEN: "\\q4711", A: 1}',
        "env: {A: 1, HF_TOKEN: '4711'}",
        "env:\n  HF_TOKEN: '4711'\n  HF_TOKEN: '4711'",
        "'env': {HF_TOKEN: 4711}",
    ],
)
def test_a_mistake_beside_a_secret_does_not_show_it(env):
    with pytest.raises(SpecErrors) as caught:
        spec_of(COMMAND + env + "\n")
    assert "4711" not in str(caught.value)
    assert "4711" not in str([e.as_dict() for e in caught.value.errors])


def test_a_mistake_in_a_spec_written_in_braces_does_not_show_its_secret():
    with pytest.raises(SpecErrors) as caught:
        spec_of("{name: X, nodes: 1, workload: {command: [a]}, env: {HF_TOKEN: '4711'}}")
    assert "4711" not in str(caught.value)


def test_lines_without_secrets_are_shown():
    with pytest.raises(SpecErrors, match=r"4 \| workload") as caught:
        spec_of(COMMAND.replace("{command", "{comand") + "env: {HF_TOKEN: '4711'}\n")
    assert caught.value.errors[0].source


@pytest.mark.parametrize("name", ["HF_TOKEN", "aws_secret_access", "WANDB_API_KEY", "DB_PASSWORD", "Token"])
def test_secret_names(name):
    assert is_secret(name)
    assert not is_secret("NCCL_DEBUG")


def test_notes_say_what_a_valid_spec_gives_up():
    assert notes(spec_of(TRAINER)) == []
    said = notes(spec_of(COMMAND.replace("workload", "max_recoveries: 0\nmesh: {replicas: 1, shards: 16}\nworkload")))
    assert [s.split(":")[0] for s in said] == [
        "One replica",
        "The command doesn't speak the worker protocol",
        "max_recoveries is 0",
    ]


def test_merge_keys_work():
    text = "base: &b {A: x}\n"
    document = parse(text + "env:\n  <<: *b\n  B: y\n", "f")
    assert document.data["env"] == {"A": "x", "B": "y"}


PLAIN = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
    | st.sampled_from(["3e-4", "1E5", "yes", "null", "1.5", "0x1", "2020-01-01"])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-3e", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), PLAIN, min_size=1))
def test_what_is_written_reads_back_the_same(data):
    """Also texts that look like numbers, and floats whose shortest form has an exponent."""
    assert parse(dump(data), "f").data == data


@settings(max_examples=300)
@given(st.text("anodes: 4\n-[]{}&*!'\"#|>%@`,?\t", max_size=60), st.integers(0, len(COMMAND)))
def test_no_text_at_all_crashes_the_loader(noise, at):
    """Whatever it is: a spec or mistakes whose places are in the file."""
    text = COMMAND[:at] + noise + COMMAND[at:]
    try:
        spec = spec_of(text)
    except SpecErrors as errors:
        for error in errors.errors:
            assert 1 <= error.line <= len(text.splitlines()) + 1
            assert error.column >= 1
            assert error.render().startswith("/specs/run.yaml:")
    else:
        assert spec.replicas * spec.shards == spec.world_size
