"""The weights with which a run starts: fresh ones, or those of a trained model (``init_from``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from binwrn_jax.deploy.jax_runtime import load_packed
from binwrn_jax.errors import UserError
from binwrn_jax.hub.huggingface import resolve
from binwrn_jax.hub.mat_file import read_released
from binwrn_jax.hub.pretrained import is_pretrained, load_pretrained, suggestion
from binwrn_jax.hub.released import to_model
from binwrn_jax.nn.registry import configured_network, is_own
from binwrn_jax.store.model import Model, read_description
from binwrn_jax.training.optimizer import AverageState
from binwrn_jax.training.state import TrainState

# Trained weights depend on these fields, and shapes do not show them.
CONVENTIONS = ("padding", "input_relu", "plain")

_log = logging.getLogger("binwrn_jax")


def open_source(name: str, own: Mapping[str, Any] | ConfigDict | None = None) -> Model:
    """The model that ``init_from`` or ``recipe.teacher`` names.

    Args:
      name: a workdir, a model folder, a packed file that names its network, one of the Hugging Face hub
        (``hf:OWNER/NAME``), a released ``.mat`` file, or the name of a pretrained network, see
        `binwrn_jax.hub.pretrained.PRETRAINED`.
      own: the ``model`` fields of the user's configuration; where they name a network of the user's own, a
        model that was trained with the same name is opened with it.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = resolve(name)
    if path.is_file() and path.suffix != ".mat":
        packed = load_packed(path)
        return Model.create(packed.variables, packed.description)
    if is_pretrained(path):
        return load_pretrained(name)
    if not path.exists() and (hint := suggestion(path)):
        raise UserError(f"no model at {path}: there is no such file or folder{hint}")
    if path.is_file():
        return to_model(read_released(path))
    network = None
    if own is not None and is_own(own):
        description = read_description(path)
        if (description.model or {}).get("type") == own["type"]:
            network = configured_network(own, description.num_classes)
    return Model.load(path, network=network)


def initial_state(state: TrainState, name: str, config: ConfigDict) -> TrainState:
    """The state with the weights and moments of a trained model.

    Where that model has other classes, its last layer has another width: this one keeps its fresh weights,
    and a line on the log ``binwrn_jax`` says so.

    Args:
      state: fresh; its optimizer state is kept.
      name: see `open_source`.
      config: of the run.

    Raises:
      UserError: a layer has another shape; the message names the first. Or the model was trained with other
        conventions.
    """
    source = open_source(name, config.model)
    fields = source.description.model or {}
    for field in CONVENTIONS:
        if field in fields and fields[field] != config.model[field]:
            raise UserError(
                f"init_from {name} has model.{field} {fields[field]!r}, this run {config.model[field]!r}: "
                f"give --config.model.{field}={fields[field]}"
            )
    ours, theirs = _leaves(state.variables), _leaves(source.variables)
    fresh = new_layers(ours, theirs, name, source.description.num_classes)
    if fresh:
        layers = ", ".join(sorted({path.split("/")[1] for path in fresh}))
        _log.info("init_from %s has other classes: %s of this run starts anew", name, layers)

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        key = _name(path)
        return leaf if key in fresh else jax.numpy.asarray(theirs[key], leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(choose, state.variables)
    opt_state = state.opt_state
    if isinstance(opt_state, AverageState):  # averages begin at the initial weights
        opt_state = opt_state._replace(average=variables["params"])
    return state.replace(opt_state=opt_state, **variables)


def new_layers(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str, classes: int) -> set[str]:
    """Paths of the variables that a model with another number of classes cannot give.

    Args:
      ours: variables of the run by path.
      theirs: those of the model.
      name: of the model, for messages.
      classes: its number of classes.

    Raises:
      UserError: other variables, or other shapes than the number of classes explains.
    """
    for path in [*ours, *theirs]:
        if path not in ours or path not in theirs:
            where = "this run has not" if path not in ours else "it has not"
            raise UserError(
                f"init_from {name} is of another network: {path} is a variable that {where}: "
                "give the same network size and variants as it was trained with"
            )
    fresh = set()
    for path, leaf in ours.items():
        mine, other = np.shape(leaf), np.shape(theirs[path])
        if mine == other:
            continue
        if mine[:-1] != other[:-1] or other[-1] != classes:
            raise UserError(
                f"init_from {name} is of another network: {path} has the shape {list(other)} there and "
                f"{list(mine)} here: give the same network size and variants as it was trained with"
            )
        fresh.add(path)
    return fresh


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by path, ``'params/conv0/kernel'``, in order of use."""
    pairs = jax.tree_util.tree_leaves_with_path(dict(variables))
    found = {_name(path): leaf for path, leaf in pairs}

    def order(path: str) -> tuple[str, int, str]:
        kind, layer, *_ = path.split("/")
        digits = layer.lstrip("abcdefghijklmnopqrstuvwxyz_")
        return kind != "params", int(digits) if digits.isdigit() else 0, path  # type: ignore[return-value]

    return {path: found[path] for path in sorted(found, key=order)}
