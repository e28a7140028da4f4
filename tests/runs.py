"""Training runs as processes: start one, wait for a step, read what it has logged."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from binwrn_jax.store.model import Model
from binwrn_jax.training.records import read_records

ROOT = Path(__file__).parents[1]
# Tiny, with two whole cycles, a cutout (so that keys matter) and checkpoints between epochs.
RUN = [
    "--config=configs/digits.py:8-0.5,1bit,cutout",
    "--config.epochs=6",
    "--config.seed=3",
    "--config.checkpoint.every_steps=10",
    "--config.log.every_steps=5",
]


def start(workdir: Path, *arguments: str, run: Sequence[str] = RUN, flags: str = "") -> subprocess.Popen:
    """The run as a process; ``flags`` are XLA's."""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "train.py", *run, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workdir: Path, *arguments: str, run: Sequence[str] = RUN, flags: str = "") -> str:
    process = start(workdir, *arguments, run=run, flags=flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns when the run has logged that step."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        records = read_records(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
        if records and records[-1]["step"] >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("the run did not get there in five minutes")


def assert_same_network(workdir: Path, other: Path) -> None:
    ours, theirs = (dict(Model.load(folder).variables) for folder in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def numbers(workdir: Path) -> list[dict]:
    """The log without what depends on the clock."""
    timed = ("seconds", "images_per_s", "data_wait")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_records(workdir / "metrics.jsonl")
    ]
