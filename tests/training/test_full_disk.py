"""A disk that fills up while a run writes: one line, and with more room the same command goes on."""

import os
import shlex
import subprocess
import sys

import pytest
from runs import ROOT, RUN, shared_compilations  # noqa: F401

UNSHARE = ["unshare", "--mount", "--map-root-user", "sh", "-c"]


def can_mount(folder) -> bool:
    """Whether this process may make a small disk for its children."""
    try:
        done = subprocess.run([*UNSHARE, f"mount -t tmpfs tmpfs {folder}"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize(
    "kilobytes",
    [900, *(pytest.param(size, marks=pytest.mark.slow) for size in (820, 860, 940, 980, 1020, 1060, 1100))],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_more_room(tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    train = shlex.join([sys.executable, "-m", "binwrn_jax", "train", *RUN, f"--workdir={disk / 'run'}"])
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk}; {train} 2>{tmp_path}/errors; echo code $?;"
        f"mount -o remount,size=64m {disk}; {train} && ls -A {disk}/run {disk}/run/checkpoints"
    )
    done = subprocess.run(
        [*UNSHARE, script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = (tmp_path / "errors").read_text()
    assert errors.startswith("error: disk full") and errors.count("\n") == 1, errors
    assert "code 2" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: test error" in done.stdout
    assert "tmp" not in done.stdout.rpartition("done: test error")[2].replace(str(tmp_path), "")
