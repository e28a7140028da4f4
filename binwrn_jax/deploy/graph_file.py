"""From a graph to the operations and tensors of a packed file, and back.

A file is of version 1 (docs/packed-format.md) where its operations allow it, and else of version 2
(docs/packed-format-2.md): what can be said in version 1 is said in it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real, UInt8

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.errors import UserError
from binwrn_jax.graph.operations import INPUT, Graph, Operation
from binwrn_jax.graph.simplify import kept_floats

Affine = tuple[np.ndarray, np.ndarray]

# Names of the format for kinds of the graph; the others are the same.
_OPS = {"multiply": "product", "concatenate": "concat", "function": "elementwise"}
_KINDS = {op: kind for kind, op in _OPS.items()}
_NO_PADS = ((0, 0), (0, 0))


class Content(NamedTuple):
    """What a file holds of a graph.

    Attributes:
      operations: as in the metadata.
      bits: ``{'conv{i}': uint8 [C_out, ceil(K / 8)]}``.
      affines: ``{'affine{j}': (scale, offset)}``, both float32 ``[C]``.
      kernels: ``{'conv{i}': float32 [C_out, F_h, F_w, C_in / groups]}``, those that are no bits.
    """

    operations: list[dict[str, Any]]
    bits: dict[str, np.ndarray]
    affines: dict[str, Affine]
    kernels: dict[str, np.ndarray]


def pack_signs(kernel: Real[np.ndarray, "Fh Fw Cin Cout"]) -> UInt8[np.ndarray, "Cout bytes"]:
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
    """A simplified graph as the packed format has it.

    Raises:
      UserError: no kernel is of bits.
    """
    kept = kept_floats(graph)
    if kept and len(kept) == sum(op.kind == "conv" for op in graph.operations):
        raise UserError("this model has 32-bit weights: only the 1-bit rules make packed models")
    content = Content([], {}, {}, {})
    for operation in graph.operations:
        for op in _expressed(operation, graph):
            entry: dict[str, Any] = {
                "op": _OPS.get(op.kind, op.kind),
                "in": list(op.inputs),
                "out": op.output,
            }
            if op.kind in ("affine", "conv"):
                entry["tensor"] = op.output
            content.operations.append({**entry, **_fields(op)})
            if op.kind == "affine":
                scale, offset = (op.tensors[key].astype(np.float32) for key in ("scale", "offset"))
                content.affines[op.output] = scale, offset
            elif op.kind == "conv" and "signs" in op.tensors:
                content.bits[op.output] = pack_signs(op.tensors["signs"])
            elif op.kind == "conv":
                kernel = op.tensors["kernel"].transpose(3, 0, 1, 2)
                content.kernels[op.output] = np.ascontiguousarray(kernel, np.float32)
    return content


def place_of(message: str, content: Content, graph: Graph) -> str:
    """Where the user's code asks for the operation that a reader's message names; '' if it names none."""
    found = re.match(r"operation (\d+) ", message)
    if not found:
        return ""
    name = content.operations[int(found[1])]["out"].partition(".")[0]
    where = next((op.where() for op in graph.operations if op.output == name), "")
    return f"; it comes from {where}" if where else ""


def weights_in_words(graph: Graph) -> str:
    """How many weights are one bit, and which kernels are not."""
    kept = kept_floats(graph)
    kernels = [next(iter(op.tensors.values())) for op in graph.operations if op.kind == "conv"]
    total, floats = sum(kernel.size for kernel in kernels), sum(found["weights"] for found in kept.values())
    names = [f"{', '.join(found['source']) or name} ({found['weights']:,})" for name, found in kept.items()]
    rest = f"; float32: {', '.join(names)}" if names else ""
    return f"{total - floats:,} of {total:,} weights are one bit{rest}"


def _expressed(operation: Operation, graph: Graph) -> Iterator[Operation]:
    """The operations of the format that do the work of one of the graph."""
    attributes, kind = operation.attributes, operation.kind
    size = graph.shapes[operation.inputs[0]][:2]
    if kind == "pad_channels":
        yield dataclasses.replace(operation, attributes={"channels": graph.shapes[operation.output][2]})
    elif kind == "conv":
        yield from _with_small_pads(operation)
    elif kind == "global_average" and operation.output != graph.output:
        yield _pool_of_all(operation, "average_pool", size)
    elif kind in ("average_pool", "max_pool") and attributes["window"] == size != (1, 1):
        if attributes["pads"] == _NO_PADS:
            yield _pool_of_all(operation, kind, size)
        else:
            yield operation
    elif kind == "resize":
        yield from _by_small_factors(operation)
    else:
        yield operation


def _pool_of_all(operation: Operation, kind: str, size: tuple[int, ...]) -> Operation:
    """A mean or maximum over all pixels inside the network: a pool of version 1 if it is not too large."""
    if max(size) <= numpy_reader.MAX_WINDOW:
        attributes = {"window": size, "stride": (1, 1), "pads": _NO_PADS, **operation.attributes}
        return dataclasses.replace(operation, kind=kind, attributes=attributes)
    return dataclasses.replace(operation, kind="global_pool", attributes={"kind": kind.removesuffix("_pool")})


def _with_small_pads(operation: Operation) -> Iterator[Operation]:
    """A convolution, its padding as an operation of its own where it is not smaller than the window."""
    attributes = operation.attributes
    window = next(iter(operation.tensors.values())).shape[:2]
    covers = [(side - 1) * gap + 1 for side, gap in zip(window, attributes["dilation"], strict=True)]
    if all(max(pad) < side for pad, side in zip(attributes["pads"], covers, strict=True)):
        yield operation
        return
    padded = f"{operation.output}.padded"
    around = {"pads": attributes["pads"], "value": 0.0}
    yield dataclasses.replace(operation, kind="pad", output=padded, attributes=around, tensors={})
    yield dataclasses.replace(operation, inputs=(padded,), attributes={**attributes, "pads": _NO_PADS})


def _by_small_factors(operation: Operation) -> Iterator[Operation]:
    """An enlargement to the nearest pixel by factors that the format has, one after another."""
    left, inputs = list(operation.attributes["factors"]), operation.inputs
    limit = numpy_reader.MAX_WINDOW
    while operation.attributes["method"] == "nearest" and max(left) > limit:
        step = [max(n for n in range(1, limit + 1) if factor % n == 0) for factor in left]
        if step == [1, 1]:
            break
        name = f"{operation.output}.{left[0]}x{left[1]}"
        left = [factor // n for factor, n in zip(left, step, strict=True)]
        yield dataclasses.replace(
            operation, inputs=inputs, output=name, attributes={**operation.attributes, "factors": tuple(step)}
        )
        inputs = (name,)
    yield dataclasses.replace(
        operation, inputs=inputs, attributes={**operation.attributes, "factors": tuple(left)}
    )


def _fields(operation: Operation) -> dict[str, Any]:
    """The fields of an operation of the format."""
    attributes = operation.attributes
    match operation.kind:
        case "affine":
            low, high = (attributes[key] for key in ("min", "max"))
            upper = {} if high is None else {"max": _rounded(high)}
            return {"min": None if low is None else _rounded(low), **upper}
        case "conv":
            return _fields_of_convolution(operation)
        case "average_pool" | "max_pool":
            return _lists(attributes, "window", "stride", "pads")
        case "pad":
            return {**_lists(attributes, "pads"), "value": _rounded(attributes["value"])}
        case "resize":
            return {"factor": list(attributes["factors"]), "method": attributes["method"]}
        case "function":
            slope = {"alpha": _rounded(attributes["slope"])} if "slope" in attributes else {}
            return {"function": attributes["function"], **slope}
    return dict(attributes)


def _fields_of_convolution(operation: Operation) -> dict[str, Any]:
    attributes = operation.attributes
    (kernel,) = operation.tensors.values()
    *window, depth, features = kernel.shape
    channels = [depth * attributes["groups"], features]
    fields = {"window": window, **_lists(attributes, "stride", "pads"), "channels": channels}
    if attributes["groups"] > 1:
        fields["groups"] = attributes["groups"]
    if tuple(attributes["dilation"]) != (1, 1):
        fields |= _lists(attributes, "dilation")
    if "kernel" in operation.tensors:
        fields["weights"] = "float32"
    return fields


def _rounded(value: float) -> float:
    return float(np.float32(value))


def _lists(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: np.asarray(attributes[name]).tolist() for name in names}


def graph_of(
    operations: list[dict[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    kernels: Mapping[str, np.ndarray],
    affines: Mapping[str, Affine],
) -> Graph:
    """The graph that a file holds.

    Args:
      operations: of the metadata.
      shapes: of its values, see `binwrn_jax.deploy.packed.PackedModel.value_shapes`.
      kernels: by convolution, ``[F_h, F_w, C_in / groups, C_out]``: int8 of -1 and +1, or float32.
      affines: by tensor.
    """
    found = []
    for entry in operations:
        kind, inputs, output = _KINDS.get(entry["op"], entry["op"]), tuple(entry["in"]), entry["out"]
        attributes = _attributes(entry)
        tensors: dict[str, np.ndarray] = {}
        if kind == "conv":
            kernel = kernels[entry["tensor"]]
            tensors = {"signs" if kernel.dtype == np.int8 else "kernel": kernel}
        elif kind == "affine":
            scale, offset = (np.asarray(part, np.float64) for part in affines[entry["tensor"]])
            tensors = {"scale": scale, "offset": offset}
        elif kind == "global_pool":
            whole = {"window": shapes[inputs[0]][:2], "stride": (1, 1), "pads": _NO_PADS}
            kind, attributes = f"{attributes['kind']}_pool", whole
        found.append(Operation(kind, inputs, output, attributes, tensors))
    last = found[-1].output
    full = {
        name: (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, shape[0])
        for name, shape in shapes.items()
    }
    assert INPUT in full
    return Graph(tuple(found), full, last)


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in a graph of an operation of a file."""
    renamed = {"factor": "factors", "alpha": "slope"}
    left_out = {"op", "in", "out", "tensor", "coding", "weights"}
    left_out |= {"window", "channels"} if entry["op"] == "conv" else set()
    found = {renamed.get(key, key): _tuples(value) for key, value in entry.items() if key not in left_out}
    if entry["op"] == "affine":
        return {"min": entry.get("min"), "max": entry.get("max")}
    return {"groups": 1, "dilation": (1, 1), **found} if entry["op"] == "conv" else found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
