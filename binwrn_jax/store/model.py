"""A model: a network, its variables and its description; and the folder that holds it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import get_dtype
from binwrn_jax.store.description import Description
from binwrn_jax.store.manifest import Damaged, check_files, describe_files, open_sealed, readable, seal
from binwrn_jax.store.orbax import own_checkpointer
from binwrn_jax.system.files import find_folder, replace_folder

MODEL_FILE = "model.json"
MODEL_FORMAT = "binwrn-jax model 1"
VARIABLES = "variables"
_REMEDY = "train or import it again"
_TRIES = 5  # to read a model that a run replaces again and again

_log = logging.getLogger("binwrn_jax")


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its variables and its description.

    Attributes:
      network: a Flax module; ``network.apply(variables, images)`` are its logits.
      variables: ``params`` and ``batch_stats`` (moments of the batch norms), as NumPy or JAX arrays.
      description: what it is; see `Description`.
    """

    network: nn.Module
    variables: Mapping[str, Any]
    description: Description

    @classmethod
    def create(cls, variables: Mapping[str, Any], fields: Mapping[str, Any]) -> Model:
        """A model of a network of this package, with the fields of ``model.json``; see `Description`."""
        description = Description.from_dict(fields)
        return cls(description.network(), variables, description)

    def save(self, directory: str | Path) -> None:
        """Writes a model folder, with a proof of each byte; an earlier model there is replaced whole.

        Missing parent folders are created.

        Raises:
          OSError: it cannot be written; an earlier model is as it was.
        """
        # Host arrays do not depend on the number of devices.
        host = jax.tree.map(np.asarray, jax.device_get(dict(self.variables)))
        fields = {"format": MODEL_FORMAT, **self.description.to_dict()}

        def write(folder: Path) -> None:
            with own_checkpointer() as checkpointer:
                checkpointer.save(folder / VARIABLES, host)
            content = seal({**fields, "files": describe_files(folder)})
            (folder / MODEL_FILE).write_text(content, encoding="utf-8")

        Path(directory).absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_folder(directory, write)

    @classmethod
    def load(cls, path: str | Path, *, network: nn.Module | None = None) -> Model:
        """Opens a model folder; its files are proven and its description is checked.

        A folder of version 0.1.0 has no proof of its files: it is opened, and a line on the log
        ``binwrn_jax`` says so.

        Args:
          path: a model folder, or a workdir of train.py.
          network: for a network that is not of this package. No code is ever read from the folder.

        Raises:
          UserError: there is no model, it is damaged or of another format, its description makes no sense,
            or its variables are not those of the network.
        """
        for attempt in range(_TRIES):
            directory = find_model(Path(path))
            before = _identity(directory)
            try:
                return cls._load(directory, network)
            except UserError:
                # A run may have put a newer model in its place meanwhile.
                if attempt + 1 == _TRIES or _identity(directory) == before:
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def _load(cls, directory: Path, network: nn.Module | None) -> Model:
        with readable(f"model {directory}", _REMEDY):
            description = _read_description(directory)
            network = network or description.network()
            expected = _variables_of(network, description)
            with own_checkpointer() as checkpointer:
                stored = checkpointer.metadata(directory.absolute() / VARIABLES).item_metadata.tree
                expected = stored if expected is None else expected
                if difference := _difference(expected, stored):
                    raise UserError(f"its variables are not those of its network: {difference}")
                like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), expected)
                variables = checkpointer.restore(directory.absolute() / VARIABLES, like)
        return cls(network, variables, description)

    def apply(self, variables: Mapping[str, Any], images: Any) -> jax.Array:
        """Logits of images, with all activations in float32.

        Args:
          variables: of this network, usually ``self.variables``.
          images: uint8 ``[N, H, W, C]``.

        Returns:
          float32 ``[N, num_classes]``.
        """
        network = self.network_in("float32")
        return jnp.asarray(network.apply(jax.tree.map(jnp.asarray, variables), images))

    def network_in(self, dtype: str | None) -> nn.Module:
        """The network with activations of another dtype.

        Args:
          dtype: ``'float32'`` or ``'bfloat16'``; None for the network's own.

        Returns:
          A copy, or the network itself where it has no attribute ``dtype``.

        Raises:
          UserError: unknown dtype.
        """
        if dtype is None or not hasattr(self.network, "dtype"):
            return self.network
        return self.network.clone(dtype=get_dtype(dtype))


def find_model(path: str | Path) -> Path:
    """The model folder that ``path`` is, or that the workdir ``path`` holds.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    for candidate in (path, path / "model"):
        folder = find_folder(candidate)
        if folder and (folder / MODEL_FILE).is_file():
            return folder
    if not path.exists():
        raise UserError(f"no model at {path}: there is no such file or folder")
    if (path / "config.json").is_file():
        raise UserError(f"the run in {path} has not reached its first evaluation: it has no model yet")
    raise UserError(f"no model at {path}: expected a workdir of train.py or an imported model")


def stored_step(directory: Path) -> int | None:
    """The step at which a run wrote its model folder; None if there is none, or it does not prove itself.

    Raises:
      UserError: it cannot be read.
    """
    folder = find_folder(directory)
    if not folder or not (folder / MODEL_FILE).is_file():
        return None
    try:
        with readable(f"model {folder}", _REMEDY):
            return _read_description(folder, quiet=True).step
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        _log.warning("%s", error)
        return None


def _read_description(directory: Path, quiet: bool = False) -> Description:
    """Proves all files of a model folder and checks its ``model.json``."""
    try:
        fields = open_sealed((directory / MODEL_FILE).read_bytes())
    except Damaged as error:
        raise Damaged(f"{MODEL_FILE}: {error}") from None
    if fields.pop("format", None) != MODEL_FORMAT:
        raise UserError(f"it is of another format than {MODEL_FORMAT!r}")
    if "files" in fields:
        check_files(directory, fields.pop("files"))
    elif not quiet:
        _log.warning("%s has no proof of its files: an earlier version wrote it", directory)
    return Description.from_dict(fields)


def _variables_of(network: nn.Module, description: Description) -> Any:
    """Shapes and dtypes of the network's variables; None where its ``init`` takes other than images."""
    images = jax.ShapeDtypeStruct((1, *description.image_shape), jnp.uint8)
    try:
        return jax.eval_shape(network.init, jax.random.key(0), images)
    except UserError:
        raise
    except Exception:
        if description.model is not None:
            raise
        return None


def _difference(expected: Any, stored: Any) -> str | None:
    """The first difference of two trees in names, shapes and dtypes, in words."""
    ours, theirs = (
        {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (expected, stored))
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name, 'missing')}, expected {ours.get(name, 'no such variable')}"
    return None


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return found.st_dev, found.st_ino
