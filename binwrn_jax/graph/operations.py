"""A network as a list of operations: the result of tracing, the input of exporters and runtimes.

Values are images ``[N, H, W, C]``, float32, each with a name; ``'image'`` is the input, 0..255. Features
without pixels, such as the logits, are images of 1 x 1 pixel.

=================== ===================================================== ====================================
kind                attributes                                              tensors
=================== ===================================================== ====================================
``affine``          ``min``, ``max``: a number or None                      ``scale``, ``offset``: float64 [C]
``conv``            ``stride``, ``pads``, ``groups``, ``dilation``          ``kernel``: float32, or ``signs``:
                                                                          int8 [F_h, F_w, C_in/groups, C_out]
``average_pool``    ``window``, ``stride``, ``pads``                        of the pixels inside the image
``max_pool``        ``window``, ``stride``, ``pads``                        of the pixels inside the image
``global_average``                                                          to 1 x 1 pixel
``pad_channels``    ``channels``                                            zeros after the channels
``pad``             ``pads``, ``value``                                     pixels of a constant
``add``             two inputs
``multiply``        two inputs; the second may have 1 x 1 pixel
``concatenate``     two or more inputs, along the channels
``resize``          ``factors`` (down, across), ``method``:
                    ``nearest``, or ``bilinear`` with half-pixel centres
``function``        ``function``: see `binwrn_jax.graph.functions`;
                    ``slope`` of ``leaky_relu``
=================== ===================================================== ====================================

``affine`` is ``clip(x scale + offset, min, max)`` by channel. ``stride``, ``window`` and ``dilation`` are
pairs (down, across), ``pads`` pairs of pairs ``((top, bottom), (left, right))``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Real

Shape = tuple[int, int, int]

INPUT = "image"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step of a network.

    Attributes:
      kind: see the table above.
      inputs: names of values.
      output: name of the value that it makes.
      attributes: numbers and names of its kind.
      tensors: arrays of its kind.
      source: paths of the parameters in its tensors, such as ``'params/conv0/kernel'``.
      where: gives the user's function, file and line that ask for it; '' where that is not known.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    source: tuple[str, ...] = ()
    where: Callable[[], str] = str


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can be computed.

    Attributes:
      operations: the last use of a value comes after the operation that makes it.
      shapes: ``(H, W, C)`` of each value, ``'image'`` included.
      output: name of the logits, of shape ``(1, 1, classes)``.
    """

    operations: tuple[Operation, ...]
    shapes: Mapping[str, Shape]
    output: str

    @property
    def multiply_adds(self) -> int:
        """Of all convolutions for one image; the border counts as if it were computed, zeros included."""
        return sum(
            math.prod(self.shapes[op.output]) * math.prod(kernel_of(op).shape[:3])
            for op in self.operations
            if op.kind == "conv"
        )


def kernel_of(operation: Operation) -> Real[np.ndarray, "Fh Fw Cin Cout"]:
    """The signs of a convolution, or else its float kernel: ``[F_h, F_w, C_in / groups, C_out]``."""
    tensors = operation.tensors
    return tensors["signs"] if "signs" in tensors else tensors["kernel"]


def uses(graph: Graph) -> dict[str, int]:
    """How often each value is used; the logits count as used once."""
    counts = dict.fromkeys(graph.shapes, 0)
    for operation in graph.operations:
        for name in operation.inputs:
            counts[name] += 1
    counts[graph.output] += 1
    return counts


def without_unused(graph: Graph) -> Graph:
    """The graph without the operations whose result nothing uses."""
    needed, kept = {graph.output}, []
    for operation in reversed(graph.operations):
        if operation.output in needed:
            needed.update(operation.inputs)
            kept.append(operation)
    shapes = {name: shape for name, shape in graph.shapes.items() if name in needed or name == INPUT}
    return Graph(tuple(reversed(kept)), shapes, graph.output)


def with_names(graph: Graph) -> Graph:
    """The graph with its values named by kind and number, as files have them; the last is ``'logits'``."""
    names = {INPUT: INPUT}
    for operation, name in zip(graph.operations, _names(graph.operations), strict=True):
        names[operation.output] = "logits" if operation.output == graph.output else name
    operations = tuple(
        dataclasses.replace(op, inputs=tuple(names[i] for i in op.inputs), output=names[op.output])
        for op in graph.operations
    )
    shapes = {names[name]: shape for name, shape in graph.shapes.items()}
    return Graph(operations, shapes, names[graph.output])


def _names(operations: tuple[Operation, ...]) -> Iterator[str]:
    short = {"average_pool": "pool", "max_pool": "pool", "pad_channels": "pad", "global_average": "average"}
    counts: dict[str, int] = {}
    for operation in operations:
        kind = short.get(operation.kind, operation.kind)
        counts[kind] = counts.get(kind, 0) + 1
        yield f"{kind}{counts[kind] - 1}"
