"""Damage to any file is found, named, and passed over for the checkpoint before."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from checkpoint_states import leftovers, newest_proven, save_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.checkpoint.errors import CheckpointDamagedError
from trainer.checkpoint.folders import PathFolder
from trainer.checkpoint.manifest import Manifest, read_manifest, read_sidecar, shard_file, sidecar_file
from trainer.checkpoint.proof import prove
from trainer.checkpoint.reader import find
from trainer.checkpoint.tiers import PathTier

FILES = ["manifest.json"] + [
    f"shard-{shard:05d}-of-00002{suffix}" for shard in (0, 1) for suffix in (".safetensors", ".json")
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    save_all(root, 100)
    save_all(root, 200)
    return root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def passed_over(root) -> str:
    """Why the newest checkpoint was rejected; the one before must have proved."""
    path, manifest, rejected = newest_proven(root)
    assert path == root / "step-00000100"
    assert manifest.step == 100
    [(damaged, why)] = rejected
    assert damaged == root / "step-00000200"
    return why


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_flipped_bit_anywhere_is_found(root, data, name):
    path = root / "step-00000200" / name
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[at] ^ (1 << data.draw(st.integers(0, 7)))
    path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    try:
        passed_over(root)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_truncated_file_is_found_and_named(root, name, left):
    path = root / "step-00000200" / name
    path.write_bytes(path.read_bytes()[:left])
    assert name in passed_over(root)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_and_named(root, name):
    (root / "step-00000200" / name).unlink()
    assert f"{name} can't be read" in passed_over(root)


def test_a_manifest_that_was_edited_does_not_prove(root):
    path = root / "step-00000200" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["meta"]["position"] += 1
    path.write_text(json.dumps(manifest))
    assert "digest doesn't match" in passed_over(root)


def forge(path, **changes) -> None:
    """Rewrite a manifest with changes and a digest that fits them."""
    manifest = read_manifest(path)
    fields = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
    (path / "manifest.json").write_text(json.dumps(Manifest(**{**fields, **changes}).to_json()))


def test_a_manifest_of_another_step_or_shard_count_does_not_prove(root):
    forge(root / "step-00000200", step=199)
    assert "the manifest is of step 199" in passed_over(root)
    forge(root / "step-00000200", step=200, shards=3)
    assert "doesn't know shard-00000-of-00003.safetensors" in passed_over(root)


def test_shards_that_leave_rows_open_do_not_prove(sound, tmp_path):
    """Half of a state that was saved by two, made to look like the whole."""
    save_all(tmp_path, 100, shards=1)
    path, source = tmp_path / "step-00000100", sound / "step-00000100"
    file, half = shard_file(0, 1), shard_file(0, 2)
    shutil.copy(source / half, path / file)
    sidecar = replace(read_sidecar(source, 0, read_manifest(source)), file=file, shards=1)
    text = json.dumps(sidecar.to_json()).encode()
    (path / sidecar_file(0, 1)).write_bytes(text)
    forge(
        path,
        files={
            file: {"bytes": sidecar.bytes, "tree_sha256": sidecar.digest},
            sidecar_file(0, 1): {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        },
    )
    with pytest.raises(CheckpointDamagedError, match=r"count: rows 5 to 9 are stored nowhere"):
        prove(path)


def test_all_damaged_means_none_with_every_reason(root):
    for path in find(root):
        (path / "manifest.json").unlink()
    newest = newest_proven(root)
    assert (newest.path, newest.manifest) == (None, None)
    assert [path.name for path, _ in newest.rejected] == ["step-00000200", "step-00000100"]


def test_no_root_means_none(tmp_path):
    assert newest_proven(tmp_path / "absent") == (None, None, [])


def test_other_entries_are_no_checkpoints(root):
    for name in ("step-7", "step-00000300.old", ".step-00000300.attempt-1.tmp", "notes"):
        (root / name).mkdir()
    assert [path.name for path in find(root)] == ["step-00000200", "step-00000100"]


def test_a_damaged_one_set_aside_makes_room_for_its_step(root):
    for number in (0, 1):
        (root / "step-00000200" / "manifest.json").unlink()
        PathTier(root).set_aside(PathFolder(root / "step-00000200"))
        assert (root / f".damaged-step-00000200-{number}").is_dir()
        assert [path.name for path in find(root)] == ["step-00000100"]
        save_all(root, 200, attempt=2 + number)
        assert prove(root / "step-00000200").attempt == 2 + number
    assert leftovers(root) == [".damaged-step-00000200-0", ".damaged-step-00000200-1"]
