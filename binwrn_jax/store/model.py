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
from binwrn_jax.nn.wide_resnet import WideResNet
from binwrn_jax.store.description import Description
from binwrn_jax.store.manifest import Damaged, check_files, describe_files, open_sealed, readable, seal
from binwrn_jax.store.orbax import own_checkpointer
from binwrn_jax.store.trees import as_dictionaries, call, variables_of, with_arrays
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
      network: a Flax Linen module; ``network.apply(variables, images)`` are its logits. Or, of your own, a
        Flax NNX module or any other tree, such as an Equinox module.
      variables: ``params`` and ``batch_stats`` (moments of the batch norms), as NumPy or JAX arrays; the
        state (`flax.nnx.state`) of an NNX module; the Equinox module itself.
      description: what it is; see `Description`.
    """

    network: Any
    variables: Any
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
          UserError: variables have the same path.
        """
        # Host arrays do not depend on the number of devices.
        host = jax.tree.map(np.asarray, jax.device_get(as_dictionaries(self.variables)))
        fields = {"format": MODEL_FORMAT, **self.description.to_dict()}

        def write(folder: Path) -> None:
            with own_checkpointer() as checkpointer:
                checkpointer.save(folder / VARIABLES, host)
            content = seal({**fields, "files": describe_files(folder)})
            (folder / MODEL_FILE).write_text(content, encoding="utf-8")

        Path(directory).absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_folder(directory, write)

    @classmethod
    def load(cls, path: str | Path, *, network: Any = None) -> Model:
        """Opens a model folder; its files are proven and its description is checked.

        A folder of version 0.1.0 has no proof of its files: it is opened, and a line on the log
        ``binwrn_jax`` says so.

        Args:
          path: a model folder, or a workdir of train.py.
          network: of a model whose network is none of this package, a Flax Linen or NNX module, or an Equinox
            module, of any weights: those that were saved take their place in ``variables``. No code is ever
            read from the folder, and none is imported because the folder names it.

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
    def _load(cls, directory: Path, network: Any) -> Model:
        with readable(f"model {directory}", _REMEDY):
            description = _read_description(directory)
            network = description.network() if network is None else network
            like = _variables_of(network, description)
            expected = None if like is None else as_dictionaries(like)
            with own_checkpointer() as checkpointer:
                stored = checkpointer.metadata(directory.absolute() / VARIABLES).item_metadata.tree
                expected = stored if expected is None else expected
                if difference := _difference(expected, stored):
                    raise UserError(f"its variables are not those of its network: {difference}")
                zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), expected)
                variables = checkpointer.restore(directory.absolute() / VARIABLES, zeros)
        if like is not None and not isinstance(network, nn.Module):
            variables = with_arrays(like, variables)
        return cls(network, variables, description)

    def apply(self, variables: Mapping[str, Any], images: Any) -> jax.Array:
        """Logits of images, with all activations in float32.

        Args:
          variables: of this network, usually ``self.variables``.
          images: uint8 ``[N, H, W, C]``.

        Returns:
          float32 ``[N, num_classes]``.

        Raises:
          UserError: nobody but its author can say how the network is called.
        """
        return call(self.network_in("float32"), variables, images)

    def network_in(self, dtype: str | None) -> Any:
        """The network with activations of another dtype.

        Args:
          dtype: ``'float32'`` or ``'bfloat16'``; None for the network's own.

        Returns:
          A copy, or the network itself where it is no Linen module with an attribute ``dtype``.

        Raises:
          UserError: unknown dtype.
        """
        network = self.network
        if dtype is None or not (isinstance(network, nn.Module) and hasattr(network, "dtype")):
            return network
        return network.clone(dtype=get_dtype(dtype))


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


def read_description(path: str | Path) -> Description:
    """What a model says of itself; its weights are not read.

    Args:
      path: a model folder, or a workdir of train.py.

    Raises:
      UserError: there is no model, it is damaged or of another format, or its description makes no sense.
    """
    directory = find_model(Path(path))
    with readable(f"model {directory}", _REMEDY):
        return _read_description(directory, quiet=True)


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


def _variables_of(network: Any, description: Description) -> Any:
    """The network's variables, or their shapes; None where its ``init`` takes other than images."""
    if isinstance(network, WideResNet):
        images = jax.ShapeDtypeStruct((1, *description.image_shape), jnp.uint8)
        return jax.eval_shape(network.init, jax.random.key(0), images)
    return variables_of(network, description.image_shape)


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
