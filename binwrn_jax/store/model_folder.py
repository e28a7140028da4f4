"""Model folders: a trained network, its variables and its description, on disk."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import create_network
from binwrn_jax.store.files import readable, write_atomically

MODEL_FILE = "model.json"
MODEL_FORMAT = "binwrn-jax model 1"


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
    directory = find_model(path)
    with readable(directory, "train or import it again"):
        description = json.loads((directory / MODEL_FILE).read_text())
        if description["format"] != MODEL_FORMAT:
            raise ValueError(f"format {description['format']!r}, not {MODEL_FORMAT!r}")
        model = create_network(description["model"], description["num_classes"])
        shapes = jax.eval_shape(
            model.init, jax.random.key(0), np.zeros((1, *description["image_shape"]), np.uint8)
        )
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        with _own_checkpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", like)
    return variables, description
