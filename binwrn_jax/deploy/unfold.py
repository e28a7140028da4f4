"""Flax variables of a packed network, for further training.

The network is traced with parameters of our choice. Its graph then says which parameters each number of the
file comes from, and by what factors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.graph.operations import Graph, Operation
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import trace
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.nn.rules import he_scale
from binwrn_jax.nn.wide_resnet import WideResNet

Variables = dict[str, dict[str, Any]]

_MEAN, _VAR = 1.0, 3.0  # of the network that is traced
_SLOPE = (_VAR + BN_EPSILON) ** -0.5


def unfold(network: WideResNet, file: Graph) -> Variables:
    """Variables of a network that give the logits of a packed file.

    The latent weights are -s and +s: the file has their signs but not their magnitudes. BN moments are
    restored. If a layer also learned a scale and an offset, one multiply-add cannot separate them from the
    moments; they become 1 and 0.

    Args:
      network: that the file names, in float32.
      file: its graph.

    Returns:
      ``params`` and ``batch_stats``, float32.

    Raises:
      UserError: the file's operations are not those of the network, or its numbers are none that it can have.
    """
    shape = file.shapes["image"]
    variables = _chosen(network, shape)
    traced = simplify(trace(network.apply, variables, shape))
    if not _same_structure(traced, file):
        file = simplify(file)  # as earlier versions wrote it
        if not _same_structure(traced, file):
            raise UserError("the packed model's operations are not those of the network that it names")
    params = {name: dict(values) for name, values in variables["params"].items()}
    stats = {name: dict(values) for name, values in variables["batch_stats"].items()}
    for ours, theirs in zip(traced.operations, file.operations, strict=True):
        if ours.kind == "conv":
            (name,) = _layers(ours, "params")
            params[name]["kernel"] = params[name]["kernel"] * theirs.tensors["signs"]
    for ours, theirs in zip(traced.operations, file.operations, strict=True):
        if ours.kind != "affine":
            continue
        norms = _layers(ours, "batch_stats")
        if norms:
            _set_norm(norms[0], ours, theirs, params, stats)
        elif network.weights in ("bwn", "bwn_layer"):
            ratio = theirs.tensors["scale"] / ours.tensors["scale"]
            for name in _layers(ours, "params"):
                params[name]["kernel"] *= ratio if network.weights == "bwn" else ratio[0]
    result: Variables = jax.tree.map(
        lambda x: np.asarray(x, np.float32), {"params": params, "batch_stats": stats}
    )
    return result


def _chosen(network: WideResNet, image_shape: tuple[int, int, int]) -> Variables:
    """Variables whose graph has no more structure in common than any other."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape), jnp.uint8))

    def value(path: Any, leaf: Any) -> np.ndarray:
        key = path[-1].key
        if key == "kernel":
            # Channels of different magnitude, where the rule gives each its own.
            step = 1 + 0.01 * np.arange(leaf.shape[3]) / leaf.shape[3] * (network.weights == "bwn")
            kernel: np.ndarray = np.ones(leaf.shape) * he_scale(leaf.shape, plain=network.plain) * step
            return kernel
        full: np.ndarray = np.full(leaf.shape, {"mean": _MEAN, "var": _VAR, "scale": 1.0, "offset": 0.0}[key])
        return full

    values = jax.tree_util.tree_map_with_path(value, shapes)
    return {"batch_stats": {}, **dict(values)}


def _same_structure(ours: Graph, theirs: Graph) -> bool:
    def structure(op: Operation) -> Any:
        fields = dict(op.attributes)
        if op.kind == "affine":  # the limits are numbers of the network; their signs are not
            fields = {key: None if v is None else float(np.sign(v)) for key, v in fields.items()}
        signs = op.tensors["signs"].shape if op.kind == "conv" else None
        return op.kind, op.inputs, op.output, fields, signs

    return list(map(structure, ours.operations)) == list(map(structure, theirs.operations))


def _layers(operation: Operation, collection: str) -> list[str]:
    """The layers whose parameters or moments are in an operation's numbers."""
    paths = (path.split("/") for path in operation.source)
    return list(dict.fromkeys(path[1] for path in paths if path[0] == collection))


def _set_norm(name: str, ours: Operation, theirs: Operation, params: Variables, stats: Variables) -> None:
    """The moments and the learned numbers of a batch norm, from the multiply-add that it is part of."""
    scale0, offset0 = (ours.tensors[key] for key in ("scale", "offset"))
    scale, offset = (theirs.tensors[key] for key in ("scale", "offset"))
    after = -offset0 / (_SLOPE * _MEAN)  # what multiplies the norm's result
    slope, offset = scale * _SLOPE / scale0, offset / after
    ok = (slope > 1e-15) & (slope <= BN_EPSILON**-0.5 * (1 + 1e-6))
    safe = np.where(ok, slope, 1)
    stats[name] = {
        "mean": np.where(ok, -offset / safe, 0),
        "var": np.where(ok, np.maximum(safe**-2.0 - BN_EPSILON, 0), 1 - BN_EPSILON),
    }
    if "scale" in params.get(name, {}):
        params[name] = {"scale": np.where(ok, 1, slope), "offset": np.where(ok, 0, offset)}
    elif not ok.all():
        raise UserError(f"{theirs.output} of the packed model is no batch norm without learned scale")
