"""Real processes that train one network together: equal to one process, and ending together."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs
from runs import ROOT, RUN, assert_same_network, numbers, wait_for_step
from trajectories import Trajectory, assert_same

from binwrn_jax import UserError
from binwrn_jax.cli import main as cli
from binwrn_jax.parallel.processes import Processes, initialize
from binwrn_jax.training.workdir import locked

# Divides over 1, 2 and 4 processes; four ghost groups. Two cycles, the second cut short.
JOB = ("--config.batch_size=48", "--config.model.ghost_size=12", "--config.epochs=4")
STEPS = 4 * 29
# JAX keeps what process 0 has compiled, and nothing of the others, which compile at each start: fast, here.
QUICKLY = "--xla_backend_optimization_level=0"
start, finish = (functools.partial(function, flags=QUICKLY) for function in (runs.start, runs.finish))
KEEP = "--config.checkpoint.keep=20"  # every checkpoint stays, to be compared


def start_job(workdir: Path, count: int, *arguments: str, own: dict[int, str] | None = None) -> list:
    """Processes of one job; ``own`` has an argument of a single one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = (*JOB, *arguments, f"--coordinator=127.0.0.1:{port}", f"--process_count={count}")
    more = {index: [own[index]] if own and index in own else [] for index in range(count)}
    return [start(workdir, *common, f"--process_index={index}", *more[index]) for index in range(count)]


def outputs(job: list, timeout: float = 300) -> list[str]:
    """What each process printed, without the runtime's own lines."""
    deadline = time.monotonic() + timeout
    try:
        texts = [process.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for process in job]
    finally:
        for process in job:
            process.kill()
    return ["".join(line for line in t.splitlines(True) if not line.startswith("[Gloo]")) for t in texts]


def codes(job: list) -> list[int]:
    return [process.returncode for process in job]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """One process, one device, uninterrupted; its convolutions by XLA, as those of several devices."""
    workdir = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "false")
        finish(workdir, *JOB, KEEP)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two processes, uninterrupted: the folder and what they printed."""
    workdir = tmp_path_factory.mktemp("two")
    job = start_job(workdir, 2, KEEP)
    texts = outputs(job)
    assert codes(job) == [0, 0], texts
    return workdir, texts


def train_steps(out: Path, count: int, devices: int, *arguments: str) -> Trajectory:
    """The first steps of a configuration, by processes that have so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [f"--coordinator=127.0.0.1:{port}", f"--process_count={count}"]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    job = [
        subprocess.Popen(
            [sys.executable, "tests/trajectories.py", str(out), "20", *arguments]
            + ([*where, f"--process_index={index}"] if count > 1 else []),
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(count)
    ]  # fmt: skip
    texts = outputs(job)
    assert codes(job) == [0] * count, texts
    with np.load(out) as found:
        return Trajectory(**found)


@pytest.mark.slow
def test_two_processes_with_four_devices_each_train_as_one_device(tmp_path):
    """A batch of 50, which eight devices do not divide: seven images each, and the last one has one."""
    arguments = RUN[:1], "--config.batch_size=50"
    one = train_steps(tmp_path / "one.npz", 1, 1, *arguments[0], arguments[1])
    two = train_steps(tmp_path / "two.npz", 2, 4, *arguments[0], arguments[1])
    assert_same(two, one)


def assert_as_one(workdir: Path, one: Path) -> None:
    """What two processes wrote is what one did."""
    ours, theirs = (json.loads((w / "summary.json").read_text()) for w in (workdir, one))
    assert ours["steps"] == theirs["steps"] == STEPS
    assert (ours["processes"], theirs["processes"]) == (2, 1) and len(ours["devices"]) == 2
    assert ours["test_error"] == pytest.approx(theirs["test_error"], abs=5)
    assert {p.name for p in workdir.iterdir()} == {p.name for p in one.iterdir()}


def test_two_processes_write_and_tell_as_one(two):
    workdir, texts = two
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["test"]["n"] == 360 and summary["packed_test_error"] == summary["test_error"]
    assert "in 2 processes" in texts[0] and "done: test error" in texts[0]
    assert texts[1] == ""


@pytest.mark.slow
def test_two_processes_are_one(one, two):
    assert_as_one(two[0], one)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_to_one_process_saves_all_at_one_step(two, tmp_path, signum):
    job = start_job(tmp_path, 2)
    wait_for_step(job[0], tmp_path, 75)
    job[1].send_signal(signum)
    texts = outputs(job, timeout=60)
    assert codes(job) == ([0, 0] if signum == signal.SIGTERM else [130, 130]), texts
    stopped = int(re.search(rf"stopped by {signum.name} at step (\d+), saved", texts[0])[1])
    assert texts[1] == ""
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == stopped
    # One process goes on where two have been.
    output = finish(tmp_path, *JOB)
    assert f"resumed at step {stopped}" in output
    assert_as_one(two[0], tmp_path)
    ours, theirs = (
        {r["step"]: r["loss"] for r in numbers(w) if r["kind"] == "train"} for w in (tmp_path, two[0])
    )
    assert list(ours) == list(theirs)
    before = [step for step in ours if step <= stopped]
    after = [step for step in ours if step > stopped][1:]  # [0] is a mean over steps before and after
    assert [ours[s] for s in before] == [theirs[s] for s in before]  # the same bits up to there
    apart = [abs(ours[s] / theirs[s] - 1) for s in after]
    print("losses after a resume: relative differences", [f"{x:.1e}" for x in apart])
    assert max(apart[:2]) < 0.02  # of one state; signs that a rounding flips count


def test_kill_9_of_one_process_ends_the_other(two, tmp_path):
    job = start_job(tmp_path, 2)
    wait_for_step(job[0], tmp_path, 75)
    job[1].kill()
    before = time.monotonic()
    texts = outputs(job, timeout=60)
    assert time.monotonic() - before < 60
    assert codes(job) == [1, -signal.SIGKILL]
    assert (
        texts[0].splitlines()[-1].startswith("error: process 1 of 2 has died, or its machine: the job ends")
    )
    assert "Traceback" not in texts[0]
    # The last checkpoint is whole; the same job from there ends with the bits of one that nobody killed.
    job = start_job(tmp_path, 2)
    texts = outputs(job)
    assert codes(job) == [0, 0], texts
    assert int(re.search(r"resumed at step (\d+)", texts[0])[1]) >= 60
    assert_same_network(tmp_path, two[0])


def test_output_that_nobody_reads_ends_all(tmp_path):
    job = start_job(tmp_path, 2)
    wait_for_step(job[0], tmp_path, 20)
    for process in job:
        process.stdout.close()  # as `... | head` does
    try:
        assert all(process.wait(timeout=90) for process in job)
    finally:
        for process in job:
            process.kill()


@pytest.mark.slow
def test_kill_9_of_process_0_ends_the_other(tmp_path):
    job = start_job(tmp_path, 2)
    wait_for_step(job[0], tmp_path, 75)
    job[0].kill()
    texts = outputs(job, timeout=60)
    assert job[1].returncode == 1
    assert re.fullmatch("error: process 0 of 2 has died, or its machine: the job ends; .*\n", texts[1])
    assert "resumed at step" in finish(tmp_path, *JOB)


@pytest.mark.slow
def test_four_processes(one, tmp_path):
    """Equal to one; SIGTERM to the third; go on with two; then one is frozen, as if its machine were lost."""
    job = start_job(tmp_path, 4, KEEP)
    wait_for_step(job[0], tmp_path, 75)
    job[2].send_signal(signal.SIGTERM)
    texts = outputs(job, timeout=60)
    assert codes(job) == [0] * 4, texts
    stopped = int(re.search(r"stopped by SIGTERM at step (\d+), saved", texts[0])[1])
    assert texts[1:] == [""] * 3

    job = start_job(tmp_path, 2, KEEP)
    wait_for_step(job[0], tmp_path, stopped + 20)
    job[1].send_signal(signal.SIGSTOP)
    before = time.monotonic()
    text = outputs(job[:1], timeout=90)[0]
    assert time.monotonic() - before < 60
    job[1].kill()
    job[1].communicate()
    assert f"resumed at step {stopped}" in text
    assert "error: process 1 of 2 has died, or its machine" in text and job[0].returncode == 1
    finish(tmp_path, *JOB, KEEP)


def test_mistakes_of_one_process_end_all(tmp_path):
    for own, message in (
        ("--config.seed=4", r"not the config of process 0 \(seed: 3 -> 4\)"),
        (f"--workdir={tmp_path / 'other'}", "is not the folder that process 0 has under this name"),
    ):
        job = start_job(tmp_path / "run", 2, own={1: own})
        texts = outputs(job, timeout=100)
        assert codes(job) == [2, 2], texts
        assert re.fullmatch(rf"config .*\nerror: process 1 of 2: .*{message}.*\n", texts[0]), texts
        assert re.fullmatch(rf"error: .*{message}.*\n", texts[1]), texts
        assert not list((tmp_path / "run").glob("[!.]*"))


def test_a_workdir_in_use_ends_all(tmp_path):
    """Process 0 alone meets this one."""
    with locked(tmp_path):
        job = start_job(tmp_path, 2)
        texts = outputs(job, timeout=100)
    assert codes(job) == [2, 2], texts
    assert texts[0].splitlines()[1].startswith("error: another run is using")
    assert texts[1].startswith("error: process 0 of 2: another run is using")


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        (Processes(count=2), "give --coordinator host:port, --process_count and --process_index together"),
        (Processes("10.0.0.1:99", 2), "together, or none"),
        (Processes("10.0.0.1:99", 2, 2), "--process_index 2 is not among 0 to 1, of --process_count 2"),
        (Processes("10.0.0.1", 2, 1), "--coordinator '10.0.0.1' is not host:port"),
    ],
)
def test_incomplete_addresses(processes, message):
    with pytest.raises(UserError, match=message):
        initialize(processes)


def test_numbers_that_are_none(capsys):
    assert cli.main(["train", "--process_count=two"]) == 2
    assert "error: argument --process_count: invalid int value: 'two'" in capsys.readouterr().err


def test_one_process_is_no_job():
    """No cluster at all; and `srun -n 1` on eight GPUs, of which JAX would take the first only."""
    code = (
        "import os, jax; from binwrn_jax.parallel.processes import Processes, initialize; initialize();"
        "initialize(Processes(count=1)); os.environ['SLURM_NTASKS'] = '1'; initialize();"
        "assert jax.process_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
