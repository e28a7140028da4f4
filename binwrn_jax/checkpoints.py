"""Orbax behind one file: checkpoints of a run in progress, and trained models to keep."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.state import TrainState

MODEL_FILE = "model.json"
MODEL_FORMAT = "binwrn-jax model 1"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Checkpoints:
    """Checkpoints of a `TrainState` in ``directory``, written in the background.

    The last ``keep`` are kept, and those at ``milestones`` (the cycle ends) for ever.
    """

    def __init__(self, directory: Path, keep: int, milestones: Iterable[int] = ()) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._directory = directory
        self._ocp = ocp
        directory.mkdir(parents=True, exist_ok=True)
        self._check_foreign()
        # Every device has the whole state. By default each process would write a slice of each array, and a
        # checkpoint would hang on what all of them have on disk; so process 0 writes it.
        first_alone = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, first_alone))
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(keep), policy.CustomSteps(list(milestones))]
                ),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def _check_foreign(self) -> None:
        known = re.compile(r"\d+|.*orbax-checkpoint-tmp.*|descriptor|_CHECKPOINT_METADATA|\..*")
        foreign = [p.name for p in self._directory.iterdir() if not known.fullmatch(p.name)]
        if foreign:
            raise UserError(
                f"{self._directory} holds {foreign[0]!r}, no checkpoint of this program: "
                "choose another --workdir"
            )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Copies the state from the devices and writes it in the background; no-op if already saved."""
        if self.latest() != step:
            self._manager.save(step, args=self._ocp.args.PyTreeSave(state), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint into the structure, dtypes and shardings of ``like``.

        Raises:
          UserError: it is corrupt or of another network.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        path = self._directory / str(step)
        remedy = "delete this folder to resume from the checkpoint before it, or choose another --workdir"
        with _readable(path, remedy):
            how = self._ocp.checkpoint_utils.construct_restore_args(abstract)
            return self._manager.restore(step, args=self._ocp.args.PyTreeRestore(abstract, restore_args=how))

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and stops the background threads."""
        self._manager.close()


@contextlib.contextmanager
def _readable(path: Path, remedy: str) -> Any:
    try:
        yield
    except Exception as error:
        # Orbax wraps what it met in a page about how it was stored.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}): {remedy}") from error


def _own_checkpointer() -> Any:
    """An Orbax checkpointer for host arrays that waits for no other process."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    )


def save_model(directory: Path, variables: dict[str, Any], description: dict[str, Any]) -> None:
    """Writes a trained network: latent weights and BN moments beside a description of itself.

    The folder is written under another name and then moved into place, so that a kill leaves the
    old model or the new one.

    Args:
      directory: created; an earlier model there is replaced.
      variables: ``params`` and ``batch_stats``.
      description: JSON fields: ``model`` (as in the config), ``num_classes``, ``image_shape``,
        ``dataset``, ``class_names``, and whatever else is known.
    """
    directory = directory.absolute()
    fresh = directory.with_name(f".{directory.name}.new")
    old = directory.with_name(f".{directory.name}.old")
    _settle(directory)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    # On the host a model belongs to no number of devices.
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    content = {"format": MODEL_FORMAT, **description}
    try:
        with _own_checkpointer() as checkpointer:
            checkpointer.save(fresh / "variables", host)
        write_atomically(fresh / MODEL_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except BaseException:  # a full disk, for example
        for seconds in (0.0, 0.1, 0.4, 1.0):  # Orbax's other threads are still writing, and make folders anew
            time.sleep(seconds)
            shutil.rmtree(fresh, ignore_errors=True)
        raise
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _settle(directory: Path) -> None:
    """Finishes or undoes a `save_model` that was killed between its two renames."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():
        old.rename(directory)


def find_model(path: Path) -> Path:
    """The model folder that ``path`` is, or that the workdir ``path`` holds.

    Raises:
      UserError: there is none.
    """
    for candidate in (path, path / "model"):
        _settle(candidate.absolute())
        if (candidate / MODEL_FILE).is_file():
            return candidate
    if not path.exists():
        raise UserError(f"no model at {path}: there is no such file or folder")
    if (path / "config.json").is_file():
        raise UserError(f"the run in {path} has not reached its first evaluation: it has no model yet")
    raise UserError(f"no model at {path}: expected a workdir of train.py or an imported model")


def load_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_model` wrote.

    Returns:
      ``(variables, description)``; the variables as NumPy arrays.

    Raises:
      UserError: nothing there, corrupt, or of another format.
    """
    from binwrn_jax.config import build_model

    directory = find_model(path)
    with _readable(directory, "train or import it again"):
        description = json.loads((directory / MODEL_FILE).read_text())
        if description["format"] != MODEL_FORMAT:
            raise ValueError(f"format {description['format']!r}, not {MODEL_FORMAT!r}")
        model = build_model(description["model"], description["num_classes"])
        shapes = jax.eval_shape(
            model.init, jax.random.key(0), np.zeros((1, *description["image_shape"]), np.uint8)
        )
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        with _own_checkpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", like)
    return variables, description
