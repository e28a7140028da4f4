"""The folder of a run: whose it is, what made it, whether there is room."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from binwrn_jax import config as configs
from binwrn_jax.checkpoints import write_atomically
from binwrn_jax.errors import UserError
from binwrn_jax.state import TrainState

# What a run writes beside its config.json.
RUN_FILES = (
    "checkpoints",
    "curves.png",
    "environment.json",
    "metrics.jsonl",
    "model",
    "model.safetensors",
    "summary.json",
    "tensorboard",
)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process: two runs in one would spoil each other's files.

    A folder made here in which nothing was written is removed again.

    Raises:
      UserError: another process holds it, or it cannot be made or written in.
    """
    made = not workdir.exists()
    lock = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"cannot use {workdir} ({error.strerror}): choose another --workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is using {workdir}: wait for it, or choose another --workdir"
            ) from None
        try:
            yield
        finally:
            if made and list(workdir.iterdir()) == [lock]:
                lock.unlink()
                workdir.rmdir()


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved configuration into a new workdir.

    Raises:
      UserError: it is of another run, or has files of no run whose names this one would use.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
            if not isinstance(old, dict):
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged: restore it, or choose another --workdir") from None
        differing = configs.differences(old, config.to_dict())
        if differing:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(differing)}): choose another --workdir"
            )
    elif found := [name for name in RUN_FILES if (workdir / name).exists()]:
        raise UserError(f"{workdir} has {found[0]} but no config.json: choose another --workdir")
    else:
        write_config(workdir, config)


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes ``config.json``."""
    write_atomically(workdir / "config.json", configs.to_json(config))


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and command, for whoever wants to repeat the run."""
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    packages = (
        "binwrn-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
    )
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": sys.argv,
        "commit": commit,
        "python": platform.python_version(),
        "packages": versions,
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.devices()[0].platform,
        "system": platform.platform(),
    }


def check_disk(workdir: Path, state: TrainState, kept: int) -> None:
    """Refuses to start where the checkpoints could not be written.

    Args:
      workdir: of the run.
      state: what a checkpoint holds.
      kept: checkpoints that a finished run has: the last ones and those of the cycle ends.

    Raises:
      UserError: there is too little room.
    """
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    vfs = os.statvfs(workdir)
    free = vfs.f_bavail * vfs.f_frsize
    there = sum(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    # Those to come, the one being written, and the trained model.
    need = (max(kept - there, 0) + 2) * one
    if free < need:
        raise UserError(
            f"disk full: {workdir} has {free / 1e6:.0f} MB free, checkpoints need {need / 1e6:.0f} MB: "
            "free some space or choose another --workdir"
        )
