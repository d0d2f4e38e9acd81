"""The configuration file: what loads, and what is said of what doesn't."""

from __future__ import annotations

import textwrap

import pytest

from trainer.config import ConfigError, DataConfig, TrainConfig, check, check_layout, load

GOOD = """
run_dir: /runs/a
steps: 100
batch_tokens: 4096
data:
  paths: [tokens]
  sequence_length: 256
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "trainer.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def keys(path) -> list[str]:
    return [problem["key"] for problem in check(path)]


def test_a_minimal_file_takes_the_defaults(written):
    config = load(written(GOOD))
    data = DataConfig(paths=["tokens"], sequence_length=256)
    assert config == TrainConfig(run_dir="/runs/a", steps=100, batch_tokens=4096, data=data)
    assert check(written(GOOD)) == []


def test_all_kinds_of_values(written):
    config = load(
        written(
            """
            run_dir: r
            steps: 1_000
            batch_tokens: 4_194_304
            model: {name: olmo_hybrid_7b, overrides: {rope_theta: null, layers: 4}}
            data: {mix: mix.txt, mix_tokenizer: dolma2, sequence_length: 8192, mask_repetition: true}
            optimizer: {lr: 3e-4, betas: [0.9, 1e-1], eps: 1.0e-8, clip_norm: 1, weight_decay: 0}
            """
        )
    )
    assert (config.steps, config.batch_tokens) == (1000, 4194304)
    assert config.model.overrides == {"rope_theta": None, "layers": 4}
    assert config.optimizer.betas == (0.9, 0.1)
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.clip_norm) == (3e-4, 1e-8, 1.0)
    assert isinstance(config.optimizer.clip_norm, float)
    assert config.data.mask_repetition is True


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("stepz: 1", "stepz", "unknown key; did you mean steps?"),
        ("zzz: 1", "zzz", "unknown key; known are run_dir, steps"),
        ("optimizer: {learning: 1}", "optimizer.learning", "unknown key; known are lr"),
        ("optimizer: {lr: fast}", "optimizer.lr", "expected a number, found a text ('fast')"),
        ("optimizer: {lr: true}", "optimizer.lr", "expected a number, found true or false (True)"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas", "expected a list of 2, found a list of 1"),
        ("optimizer: {betas: [0.9, x]}", "optimizer.betas[1]", "expected a number, found a text ('x')"),
        ("optimizer: {betas: 0.9}", "optimizer.betas", "expected a list of 2, found a number (0.9)"),
        ("threads: 1.5", "threads", "expected an integer, found a number (1.5)"),
        ("threads: true", "threads", "expected an integer, found true or false (True)"),
        ("checkpoint:", "checkpoint", "expected a mapping, found nothing"),
        ("checkpoint: [1]", "checkpoint", "expected a mapping, found a list of 1"),
        ("device: tpu", "device", "must be auto, cpu or cuda, not 'tpu'"),
        ("seed: -1", "seed", "must be from 0 to 2^63 - 1, not -1"),
        ("optimizer: {lr: .nan}", "optimizer.lr", "must be above 0 and finite, not nan"),
        ("optimizer: {lr: .inf}", "optimizer.lr", "must be above 0 and finite, not inf"),
        ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas", "must be two numbers from 0 to below 1"),
        ("optimizer: {final_lr_ratio: 2}", "optimizer.final_lr_ratio", "must be from 0 to 1, not 2.0"),
        ("checkpoint: {interval_steps: 0}", "checkpoint.interval_steps", "must be at least 1, not 0"),
        ("checkpoint: {keep: -1}", "checkpoint.keep", "must be 0 (every one) or more, not -1"),
        ("micro_batch_sequences: -1", "micro_batch_sequences", "must be 0 or more, not -1"),
    ],
)
def test_one_wrong_line_is_the_one_problem(written, line, key, message):
    [problem] = check(written(GOOD + line + "\n"))
    assert problem["key"] == key
    assert problem["message"].startswith(message)
    with pytest.raises(ConfigError) as raised:
        load(written(GOOD + line + "\n"))
    assert raised.value.key_path == key
    assert str(raised.value) == f"{key}: {problem['message']}"


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("steps: 100", "", "steps", "is required"),
        ("steps: 100", "steps: 0", "steps", "must be at least 1, not 0"),
        ("run_dir: /runs/a", "run_dir: ''", "run_dir", "must be a folder"),
        (
            "batch_tokens: 4096",
            "batch_tokens: 4000",
            "batch_tokens",
            "4000 is no multiple of data.sequence_length, 256",
        ),
        ("batch_tokens: 4096", "batch_tokens: 0", "batch_tokens", "must be at least 1, not 0"),
        ("sequence_length: 256", "sequence_length: 1", "data.sequence_length", "must be at least 2, not 1"),
        ("paths: [tokens]", "paths: tokens", "data.paths", "expected a list, found a text ('tokens')"),
        ("paths: [tokens]", "paths: [1]", "data.paths[0]", "expected a text, found an integer (1)"),
        ("paths: [tokens]", "paths: []", "data.paths", "give either data.paths or data.mix"),
        ("paths: [tokens]", "paths: [a]\n  mix: b", "data.paths", "give either data.paths or data.mix, not both"),
        (
            "paths: [tokens]",
            "paths: [a]\n  vocab_size: 258\n  eos_id: 258",
            "data.eos_id",
            "258 is outside the vocabulary",
        ),
        ("steps: 100", "steps: 100\nsteps: 200", "steps", "stands twice in one mapping, again in line 4"),
    ],
)
def test_one_wrong_value_is_the_one_problem(written, old, new, key, message):
    assert old in GOOD
    [problem] = check(written(GOOD.replace(old, new)))
    assert (problem["key"], problem["message"][: len(message)]) == (key, message)


def test_all_problems_are_told_at_once(written):
    text = "stepz: 1\nbatch_tokens: x\ndata: {seed: a, path: [b]}\n"
    assert sorted(keys(written(text))) == ["batch_tokens", "data.path", "data.seed", "run_dir", "steps", "stepz"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "expected a mapping, found nothing"), ("a: [", "is no YAML"), ("\x00", "is no YAML")]
)
def test_a_file_that_is_no_mapping(written, text, message):
    [problem] = check(written(text))
    assert problem["key"] == ""
    assert message in problem["message"]


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")


def test_a_file_cannot_run_code(written):
    [problem] = check(written("run_dir: !!python/object/apply:os.getcwd []"))
    assert "is no YAML" in problem["message"]


@pytest.mark.parametrize(
    ("world", "micro", "keys"),
    [
        (1, 0, []),
        (4, 0, []),
        (16, 1, []),
        (4, 2, []),
        (4, 3, ["micro_batch_sequences"]),
        (3, 0, ["batch_tokens"]),
        (32, 0, ["batch_tokens"]),
        (0, 0, [""]),
    ],
)
def test_layouts_of_a_batch_of_16_sequences(written, world, micro, keys):
    config = load(written(GOOD + f"micro_batch_sequences: {micro}\n"))
    problems = check_layout(config, world)
    assert [problem["key"] for problem in problems] == keys
    if world == 32:
        assert problems[0]["message"] == "16 sequences a batch can't be shared evenly by 32 ranks; 16 can"
