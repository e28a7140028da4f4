"""The workdir of a run: its owner, its configuration, and room on its disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from binwrn_jax.errors import UserError
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.store.checkpoints import set_damaged_aside
from binwrn_jax.system.files import remove_leftovers, replace_file
from binwrn_jax.training import config as configs
from binwrn_jax.training.resolve import ResolvedRun, continuation_conflict
from binwrn_jax.training.state import TrainState

SHARED_SECONDS = 10.0  # until a file that one machine wrote must be seen by another

# What a run writes beside its config.json.
RUN_FILES = (
    "best",
    "checkpoints",
    "curves.png",
    "data.json",
    "environment.json",
    "loggers.json",
    "metrics.jsonl",
    "mlflow",
    "model",
    "model.safetensors",
    "summary.json",
    "tensorboard",
    "wandb",
)

MANIFEST = "data.json"  # which own images the run trains on

_log = logging.getLogger("binwrn_jax")


def local_folder(given: str | Path) -> Path:
    """A workdir as a path.

    Raises:
      UserError: it is an address such as ``gs://bucket/run``: checkpoints get their names by renaming
        folders, which object stores cannot do.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|s3):/", str(given)):
        raise UserError(f"--workdir {given} is no folder: mount the bucket, see tpu/README.md")
    return Path(given)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the workdir and locks it for this job, since two runs would overwrite each other's files.

    A folder made here in which nothing was written is removed again.

    Raises:
      UserError: another run holds it, it cannot be made or written in, or it is not the same folder in all
        processes.
    """
    with _locked_by_first(workdir) if distributed.is_primary() else contextlib.nullcontext():
        # The other processes must find what process 0 has written there.
        lock = workdir / ".lock"
        token = distributed.broadcast_from_primary(lock.read_text)
        deadline = time.monotonic() + SHARED_SECONDS
        while not (lock.exists() and lock.read_text() == token):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{workdir} is not the folder that process 0 has under this name: "
                    "give a --workdir that all machines share"
                )
            time.sleep(0.1)
        distributed.wait_for_all()  # nothing is written in a folder that is not everybody's
        yield


@contextlib.contextmanager
def _locked_by_first(workdir: Path) -> Iterator[None]:
    made = not workdir.exists()
    lock = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"cannot use {workdir} ({error.strerror}): choose another --workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is using {workdir}: wait for it, or choose another --workdir"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        file.truncate(0)
        file.write(secrets.token_hex(8))
        file.flush()
        os.fsync(file.fileno())  # a mounted bucket shows it to other machines only then
        remove_leftovers(workdir, {*RUN_FILES, "config.json"}, alone=True)
        try:
            yield
        finally:
            if made and list(workdir.iterdir()) == [lock]:
                lock.unlink()
                workdir.rmdir()


def check_same(config: ConfigDict) -> None:
    """Refuses processes that were started with different configurations.

    Raises:
      UserError: a field other than the folder of the data differs from that of process 0.
    """
    theirs = json.loads(distributed.broadcast_from_primary(lambda: configs.to_json(config)))
    differing = configs.differences(theirs, config.to_dict(), free=("data.dir",))
    if differing:
        raise UserError(f"not the config of process 0 ({'; '.join(differing)}): start all with the same")


def claim_workdir(
    workdir: Path, run: ResolvedRun, state: TrainState, manifest: Mapping[str, Any] | None = None
) -> None:
    """Writes the resolved configuration into a new workdir.

    A workdir of the same run with fewer epochs is taken too, if that run is the beginning of this one.

    Args:
      workdir: folder of the run.
      run: what is to be trained.
      state: of its beginning.
      manifest: of own images, see `binwrn_jax.data.dataset.Dataset.manifest`.

    Raises:
      UserError: it is of another run, its images have changed, or it has files of no run whose names this
        one would use, or no room for checkpoints of ``state``, of which those of the cycle ends are kept for
        ever.
    """
    config = run.config
    check_disk(workdir, state, config.checkpoint.keep + len(run.cycle_ends))
    path = workdir / "config.json"
    if path.exists():
        _check_same_images(workdir / MANIFEST, manifest)
        try:
            old = json.loads(path.read_text())
            if not isinstance(old, dict):
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged: restore it, or choose another --workdir") from None
        if differing := configs.differences(old, config.to_dict()):
            why = "; ".join(differing)
            conflict = continuation_conflict(old, run) if differing[0].startswith("epochs: ") else why
            if len(differing) > 1 or conflict:
                raise UserError(
                    f"{workdir} holds a run of another config ({conflict if len(differing) == 1 else why}): "
                    "choose another --workdir"
                )
            write_config(workdir, config)
    elif found := [name for name in RUN_FILES if (workdir / name).exists()]:
        raise UserError(f"{workdir} has {found[0]} but no config.json: choose another --workdir")
    else:
        write_config(workdir, config)
    if manifest is not None:
        text = json.dumps(manifest, indent=2, sort_keys=True)
        replace_file(workdir / MANIFEST, text + "\n")
    for line in set_damaged_aside(workdir / "checkpoints"):
        _log.warning("%s", line)


def _check_same_images(path: Path, manifest: Mapping[str, Any] | None) -> None:
    """Refuses images that have changed since the run began.

    Raises:
      UserError: the hash of the images and their splits is another one.
    """
    try:
        old = json.loads(path.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # not of own images, or written anew below
        return
    if manifest is not None and old != manifest["sha256"]:
        raise UserError(
            f"the images of {manifest['dataset']} or their division have changed since the run in "
            f"{path.parent} began: restore them, or choose another --workdir"
        )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes ``config.json``."""
    replace_file(workdir / "config.json", configs.to_json(config))


def check_disk(workdir: Path, state: TrainState, kept: int) -> None:
    """Refuses to start without room for the checkpoints.

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
