"""From a graph to the operations and tensors of a packed file (docs/packed-format.md), and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.errors import CannotExport, UserError
from binwrn_jax.graph.operations import INPUT, Graph, Operation
from binwrn_jax.graph.simplify import kept_floats

Affine = tuple[np.ndarray, np.ndarray]

_POINTWISE: dict[str, Any] = {"groups": 1, "dilation": (1, 1)}


class Content(NamedTuple):
    """What a file holds of a graph.

    Attributes:
      operations: as in the metadata.
      bits: ``{'conv{i}': uint8 [C_out, ceil(K / 8)]}``.
      affines: ``{'affine{j}': (scale, offset)}``, both float32 ``[C]``.
    """

    operations: list[dict[str, Any]]
    bits: dict[str, np.ndarray]
    affines: dict[str, Affine]


def pack_signs(kernel: np.ndarray) -> np.ndarray:
    """The bits of a kernel: 1 where ``w >= 0`` (also -0.0), 0 where ``w < 0``.

    Args:
      kernel: ``[F_h, F_w, C_in, C_out]``, real numbers.

    Returns:
      uint8 ``[C_out, ceil(F_h F_w C_in / 8)]`` in the bit order of docs/packed-format.md.

    Raises:
      UserError: a weight is NaN and has no sign.

    >>> pack_signs(np.array([0.5, -0.5, 0.0]).reshape(1, 1, 3, 1)).tolist()
    [[5]]
    """
    kernel = np.asarray(kernel)
    if np.isnan(kernel).any():
        raise UserError("a convolution has NaN weights: the training diverged, there is nothing to pack")
    rows = np.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1)
    return np.packbits(rows >= 0, axis=1, bitorder="little")


def content_of(graph: Graph) -> Content:
    """A simplified graph as version 1 of the packed format has it.

    Raises:
      CannotExport: version 1 has no such operation.
      UserError: kernels are no bits.
    """
    _check_bits(graph)
    content = Content([], {}, {})
    for op in graph.operations:
        entry: dict[str, Any] = {"op": op.kind, "in": list(op.inputs), "out": op.output}
        if op.kind in ("affine", "conv"):
            entry["tensor"] = op.output
        if op.kind == "global_average" and op is not graph.operations[-1]:
            op = _mean_as_pool(op, graph)
            entry["op"] = op.kind
        fields = _fields(op, graph)
        if fields is None:
            raise CannotExport(f"version {numpy_reader.VERSION} of the packed format has no {_words(op)}")
        content.operations.append({**entry, **fields})
        if op.kind == "affine":
            scale, offset = (op.tensors[key].astype(np.float32) for key in ("scale", "offset"))
            content.affines[op.output] = scale, offset
        elif op.kind == "conv":
            content.bits[op.output] = pack_signs(op.tensors["signs"])
    return content


def _mean_as_pool(operation: Operation, graph: Graph) -> Operation:
    """A mean over all pixels inside the network: version 1 has one at its end only, but pools of any size."""
    window = graph.shapes[operation.inputs[0]][:2]
    attributes = {"window": window, "stride": (1, 1), "pads": ((0, 0), (0, 0))}
    return dataclasses.replace(operation, kind="average_pool", attributes=attributes)


def _check_bits(graph: Graph) -> None:
    kept = kept_floats(graph)
    convolutions = [op for op in graph.operations if op.kind == "conv"]
    if kept and len(kept) == len(convolutions):
        raise UserError("this model has 32-bit weights: only the 1-bit rules make packed models")
    for name, found in kept.items():
        where = ", ".join(found["source"]) or name
        raise CannotExport(
            f"{where}: {found['weights']} weights with {found['magnitudes']} magnitudes: version "
            f"{numpy_reader.VERSION} of the packed format has kernels with one bit per weight only"
        )


def _words(operation: Operation) -> str:
    words = [operation.attributes.get("function", operation.kind).replace("_", " ")]
    words += [key for key, value in _POINTWISE.items() if operation.attributes.get(key, value) != value]
    words += ["upper limit"] if operation.attributes.get("max") is not None else []
    return " with ".join(words) + (f" ({', '.join(operation.source)})" if operation.source else "")


def _fields(operation: Operation, graph: Graph) -> dict[str, Any] | None:
    """The fields of version 1; None where it cannot express the operation."""
    attributes = operation.attributes
    if operation.kind == "affine" and attributes["max"] is None:
        low = attributes["min"]
        return {"min": None if low is None else float(np.float32(low))}
    if operation.kind == "conv" and {key: attributes[key] for key in _POINTWISE} == _POINTWISE:
        *window, depth, features = operation.tensors["signs"].shape
        return {"window": window, **_lists(attributes, "stride", "pads"), "channels": [depth, features]}
    if operation.kind in ("average_pool", "max_pool"):
        return _lists(attributes, "window", "stride", "pads")
    if operation.kind == "pad_channels":
        return {"channels": graph.shapes[operation.output][2]}
    same = len({graph.shapes[name] for name in operation.inputs}) == 1
    return {} if operation.kind in ("add", "global_average") and same else None


def _lists(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: np.asarray(attributes[name]).tolist() for name in names}


def graph_of(
    operations: list[dict[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    signs: Mapping[str, np.ndarray],
    affines: Mapping[str, Affine],
) -> Graph:
    """The graph that a file holds.

    Args:
      operations: of the metadata.
      shapes: of its values, see `binwrn_jax.deploy.packed.PackedModel.value_shapes`.
      signs: -1 and +1 by convolution, ``[F_h, F_w, C_in, C_out]``.
      affines: by tensor.
    """
    found = []
    for entry in operations:
        kind, inputs, output = entry["op"], tuple(entry["in"]), entry["out"]
        attributes: dict[str, Any] = {
            key: tuple(tuple(part) if isinstance(part, list) else part for part in entry[key])
            for key in ("window", "stride", "pads")
            if key in entry
        }
        tensors: dict[str, np.ndarray] = {}
        if kind == "conv":
            tensors = {"signs": signs[entry["tensor"]].astype(np.int8)}
            attributes = {**attributes, **_POINTWISE}
            del attributes["window"]
        elif kind == "affine":
            scale, offset = (np.asarray(part, np.float64) for part in affines[entry["tensor"]])
            tensors, attributes = {"scale": scale, "offset": offset}, {"min": entry.get("min"), "max": None}
        elif kind == "pad_channels":
            attributes = {"channels": entry["channels"]}
        found.append(Operation(kind, inputs, output, attributes, tensors))
    last = found[-1].output
    full = {
        name: (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, shape[0])
        for name, shape in shapes.items()
    }
    assert INPUT in full
    return Graph(tuple(found), full, last)
