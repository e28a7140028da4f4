"""Any JAX network as a file of bits: traced, packed, and proven on images before the file gets its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy.export import reference_logits, write_verified
from binwrn_jax.deploy.formats import Format, all_formats, get_format
from binwrn_jax.deploy.graph_file import weights_in_words
from binwrn_jax.deploy.packed import pack_graph
from binwrn_jax.errors import UserError
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import trace
from binwrn_jax.store.description import Description

IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
      path: of the file.
      format: its name.
      lines: what it was compared on, and a line for each reader that has proven it.
    """

    path: Path
    format: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.path}: {self.format}", *self.lines))


def export(
    apply: Callable[[Any, Any], Any],
    variables: Any,
    path: str | Path,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    format: str | None = None,
) -> Exported:
    """Writes a network as a file to deploy, and proves that it gives the network's logits.

    The network computes in float32 in the file, whatever it was trained in. Which operations can be exported
    docs/own-network.md says. A kernel with one magnitude for each output channel becomes bits, see
    `binarize`; others stay float32, and the result lists them.

    Args:
      apply: ``apply(variables, images)``: logits ``[N, classes]`` of uint8 ``[N, H, W, C]`` at inference,
      with
        the kernels that are used (`binarize` is called in it, unless layers like `BinaryConv` do so).
      variables: any tree of arrays.
      path: of the file; an older file there stays until the new one is proven.
      input_shape: ``(H, W, C)``.
      class_names: a name for each class; None for none.
      images: uint8 ``[N, H, W, C]`` to compare on, the first one becomes the golden image; None for 100
      random
        ones.
      format: ``'packed'``, ``'onnx'``, ``'stablehlo'`` or ``'c'``; None for that of the path's suffix.

    Raises:
      CannotExport: the network has an operation, or a kernel, that the format does not have.
      UserError: bad arguments, or the file does not give the network's logits; nothing is written.
    """
    path, shape = Path(path), _shape(input_shape)
    known = _format(path, format)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
        compared = f"compared on {IMAGES} RANDOM images, as none were given"
    else:
        images = check_images(images, shape)
        compared = f"compared on {len(images)} images"
        if not len(images):
            raise UserError("there are no images to compare on: give some, or None for random ones")
    graph = simplify(trace(apply, variables, shape))
    classes = graph.shapes[graph.output][2]
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"{len(class_names)} class names for a network of {classes} classes")
    description = Description(classes, shape, class_names=tuple(class_names or ()))
    packed = pack_graph(graph, description, images[0])
    reference, notes = reference_logits(apply, variables, lambda: graph, images)
    lines = write_verified(known, packed, path, images, reference)
    return Exported(path, known.name, (compared, weights_in_words(graph), *notes, *lines))


def _shape(input_shape: Any) -> tuple[int, int, int]:
    try:
        height, width, channels = (int(length) for length in input_shape)
    except (TypeError, ValueError):
        height = width = channels = 0
    if min(height, width, channels) < 1:
        raise UserError(f"input_shape is {input_shape}: it must be (height, width, channels)")
    return height, width, channels


def _format(path: Path, name: str | None) -> Format:
    if name is not None:
        return get_format(name)
    for known in all_formats():
        if path.suffix == known.suffix and known.write:
            return known
    suffixes = ", ".join(f"{known.suffix} ({known.name})" for known in all_formats() if known.write)
    raise UserError(f"the suffix of {path} names no format: use one of {suffixes}, or format=...")
