"""Checkpoints: proven by a manifest, passed over where they are damaged."""

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import flips

from binwrn_jax import UserError
from binwrn_jax.store.checkpoints import MANIFEST_FILE, Checkpoints, prove, set_damaged_aside
from binwrn_jax.store.manifest import Damaged


def state(step: int) -> dict[str, jax.Array]:
    return {"step": jnp.array(step), "kernel": jax.random.normal(jax.random.key(step), (3, 3, 8, 8))}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(directory, keep=2, milestones=[1])
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step))
    checkpoints.save(4, state(5))  # is there already
    checkpoints.wait()
    checkpoints.close()
    return directory


@pytest.fixture
def directory(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


def restored(directory: Path) -> dict[str, jax.Array]:
    checkpoints = Checkpoints(directory, keep=2, milestones=[1])
    try:
        step = checkpoints.latest()
        assert step is not None
        return checkpoints.restore(step, state(0))
    finally:
        checkpoints.close()


def assert_is(ours: dict[str, jax.Array], step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, state(step))


def damage(directory: Path, step: int) -> str:
    path = max((p for p in (directory / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path.name


def test_each_checkpoint_proves_itself(directory):
    assert sorted(os.listdir(directory)) == ["1", "3", "4"]
    assert all(prove(directory / step) for step in os.listdir(directory))
    assert set_damaged_aside(directory) == []
    assert_is(restored(directory), 4)
    assert set_damaged_aside(directory / "nothing") == []


def test_a_surplus_checkpoint_is_removed_at_the_next_start(directory):
    shutil.copytree(directory / "3", directory / "2")
    assert_is(restored(directory), 4)
    assert sorted(os.listdir(directory)) == ["1", "3", "4"]


def test_damaged_ones_are_passed_over_and_kept(directory):
    first, second = damage(directory, 4), damage(directory, 3)
    lines = set_damaged_aside(directory)
    assert len(lines) == 2
    assert first in lines[0] and "its SHA-256 is another" in lines[0] and ".4.damaged" in lines[0]
    assert second in lines[1]
    assert_is(restored(directory), 1)
    assert sorted(os.listdir(directory)) == [".3.damaged", ".4.damaged", "1"]
    # It is written again, and damaged again.
    checkpoints = Checkpoints(directory, keep=2, milestones=[1])
    checkpoints.save(3, state(3))
    checkpoints.close()
    assert_is(restored(directory), 3)
    damage(directory, 3)
    assert len(set_damaged_aside(directory)) == 1
    assert_is(restored(directory), 1)


@pytest.mark.parametrize("how", ["missing", "longer", "manifest"])
def test_other_kinds_of_damage(directory, how):
    (inner,) = (directory / "4" / "default").glob("manifest.ocdbt")
    manifest = directory / "4" / MANIFEST_FILE
    if how == "missing":
        inner.unlink()
    elif how == "longer":
        inner.write_bytes(inner.read_bytes() + b"x")
    else:
        manifest.write_text(manifest.read_text().replace('"bytes": ', '"bytes": 1'))
    (line,) = set_damaged_aside(directory)
    assert {"missing": "is missing", "longer": "were written", "manifest": MANIFEST_FILE}[how] in line
    assert_is(restored(directory), 3)


def test_nothing_is_moved_if_all_checkpoints_are_damaged(directory):
    for step in (1, 3, 4):
        damage(directory, step)
    with pytest.raises(UserError, match=r"no checkpoint in .* is what was written .*: restore one from a"):
        set_damaged_aside(directory)
    assert sorted(os.listdir(directory)) == ["1", "3", "4"]


def test_a_checkpoint_without_a_proof_is_taken_with_a_line(directory):
    (directory / "4" / MANIFEST_FILE).unlink()
    (line,) = set_damaged_aside(directory)
    assert "/4 has no proof of its files: an earlier version wrote it" in line
    assert_is(restored(directory), 4)


def test_a_file_without_permission_is_no_damage(directory, monkeypatch):
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=r"/4 cannot be read \(Permission denied: .*\)$"):
        set_damaged_aside(directory)
    assert sorted(os.listdir(directory)) == ["1", "3", "4"]


def test_the_proof_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    from binwrn_jax.store import checkpoints as module

    seen = []

    def spy(folder: Path) -> None:
        seen.append((folder.name, os.listdir(tmp_path / "c")))
        real(folder)

    real = module.write_manifest
    monkeypatch.setattr(module, "write_manifest", spy)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(12, state(12))
    checkpoints.save(123, state(123))
    checkpoints.close()
    assert [name.split(".")[0] for name, _ in seen] == ["12", "123"]
    assert all("orbax-checkpoint-tmp" in name and name.split(".")[0] not in names for name, names in seen)
    assert all(prove(tmp_path / "c" / step) for step in ("12", "123"))


def test_a_proof_that_cannot_be_written_fails_the_save(tmp_path, monkeypatch):
    from binwrn_jax.store import checkpoints as module

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(module, "write_manifest", full)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(1, state(1))
    with pytest.raises(Exception, match="No space left"):
        checkpoints.wait()
    assert not (tmp_path / "c" / "1").exists()


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_no_number(directory, count):
    for step in (1, 3):
        shutil.rmtree(directory / str(step))
    refused = 0
    for path in flips(directory / "4", count, seed=count):
        try:
            assert prove(directory / "4")
            ours = restored(directory)
        except (UserError, Damaged):
            refused += 1
        else:
            assert path.name in ("_CHECKPOINT_METADATA", "commit_success.txt"), path
            assert_is(ours, 4)
    assert refused > 0.9 * count
