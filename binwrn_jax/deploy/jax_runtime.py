"""Packed files run by JAX.

model = load_packed("model.safetensors")
logits = model.predict(images)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.graph_runtime import FUNCTIONS
from binwrn_jax.deploy.jax_integers import IntegerModel
from binwrn_jax.deploy.packed import PackedModel, read_packed
from binwrn_jax.deploy.predictor import in_batches
from binwrn_jax.deploy.unfold import unfold
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, Predictor
from binwrn_jax.nn.operations import convolution
from binwrn_jax.nn.registry import create_network

Operation = dict[str, Any]

UNPACKED = 1 << 24  # weights of a convolution that are floats at a time, while it runs
LARGE_WINDOW = 64  # pixels; pools with larger windows take one axis after the other
MAX_NUMBERS = 1 << 28  # float32 numbers of a batch's values at a time; a batch has fewer images otherwise


def _unpack(bits: jax.Array, window: tuple[int, int], depth: int, row: int = 0) -> jax.Array:
    """Kernels float32 ``[F_h, F_w, D, C]`` of the bits of C output channels, inside a program.

    Args:
      bits: uint8 ``[C, ceil(K / 8)]``, as in the file.
      window: ``(F_h, F_w)`` of the result.
      depth: D, input channels that each output channel sees.
      row: the row of the file's window with which the result begins.
    """
    count = math.prod(window) * depth
    first = row * window[1] * depth
    rows = jnp.unpackbits(bits[:, first // 8 : -(-(first + count) // 8)], axis=1, bitorder="little")
    kernel = rows[:, first % 8 : first % 8 + count].reshape(len(bits), *window, depth).transpose(1, 2, 3, 0)
    return jnp.where(kernel, jnp.float32(1), jnp.float32(-1))


def _after(bits: jax.Array, x: jax.Array) -> jax.Array:
    """The same bits, but not before x is there.

    XLA would unpack all layers first and hold them until they are used. It drops an optimization_barrier on
    the CPU, and cannot tell that x has no NaN.
    """
    return bits ^ jnp.isnan(x[:1, 0, 0, 0]).any().astype(jnp.uint8)


def _convolve(x: jax.Array, kernel: jax.Array, operation: Operation) -> jax.Array:
    stride, (vertical, horizontal) = tuple(operation["stride"]), operation["pads"]
    pads, groups = (tuple(vertical), tuple(horizontal)), operation.get("groups", 1)
    if kernel.dtype == jnp.uint8:
        window, (c_in, c_out) = tuple(operation["window"]), operation["channels"]
        if math.prod(window) * (c_in // groups) * c_out > UNPACKED:
            return _convolve_in_parts(x, kernel, operation)
        kernel = _unpack(_after(kernel, x), window, c_in // groups)
    if groups == 1 and "dilation" not in operation:
        return convolution(x, kernel, stride, pads)
    return _xla_convolution(x, kernel, operation, pads, groups)


def _xla_convolution(
    x: jax.Array, kernel: jax.Array, operation: Operation, pads: Sequence[tuple[int, int]], groups: int
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        tuple(operation["stride"]),
        pads,
        rhs_dilation=operation.get("dilation"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _convolve_in_parts(x: jax.Array, bits: jax.Array, operation: Operation) -> jax.Array:
    """A large convolution, of which at most `UNPACKED` weights are floats at a time."""
    groups, (c_in, c_out) = operation.get("groups", 1), operation["channels"]
    depth, outputs = c_in // groups, c_out // groups  # of one group
    together = min(groups, max(1, UNPACKED // (operation["window"][1] * depth * outputs)))
    results: list[jax.Array] = []
    for first in range(0, groups, together):
        some = slice(first * outputs, (first + together) * outputs)
        part = x[..., first * depth : (first + together) * depth]
        after = results[-1] if results else x
        results.append(_convolve_by_rows(part, bits[some], operation, depth, after))
    return jnp.concatenate(results, axis=3)


def _convolve_by_rows(
    x: jax.Array, bits: jax.Array, operation: Operation, depth: int, after: jax.Array
) -> jax.Array:
    """A row of the window at a time, and where x has one group only, some output channels."""
    (height, width), groups = operation["window"], x.shape[3] // depth
    (top, bottom), horizontal = operation["pads"]
    dilation = operation.get("dilation", (1, 1))[0]
    together = len(bits) if groups > 1 else min(len(bits), max(1, UNPACKED // (width * depth)))
    blocks = jnp.pad(bits, ((0, -len(bits) % together), (0, 0))).reshape(-1, together, bits.shape[1])
    result: Any = None
    for row in range(height):
        # The pixels that this row meets; negative padding leaves rows of the image out.
        pads = ((top - row * dilation, bottom - (height - 1 - row) * dilation), tuple(horizontal))

        def some(block: jax.Array, row: int = row, pads: Any = pads) -> jax.Array:
            return _xla_convolution(x, _unpack(block, (1, width), depth, row), operation, pads, groups)

        parts = jax.lax.map(some, _after(blocks, after))
        part = jnp.moveaxis(parts, 0, 3).reshape(*parts.shape[1:4], -1)
        result = after = part if result is None else result + part
    return result[..., : len(bits)]


def _pool(x: jax.Array, operation: Operation) -> jax.Array:
    window, stride = tuple(operation["window"]), tuple(operation["stride"])
    pads = tuple(tuple(pad) for pad in operation["pads"])
    pool: Any = nn.max_pool
    if operation["op"] == "average_pool":
        pool = partial(nn.avg_pool, count_include_pad=False)
    if math.prod(window) <= LARGE_WINDOW:
        y = pool(x, window, stride, pads)
    else:  # One axis after the other: XLA pads in memory on the CPU, here along one axis at a time.
        y = pool(x, (window[0], 1), (stride[0], 1), (pads[0], (0, 0)))
        y = pool(y, (1, window[1]), (1, stride[1]), ((0, 0), pads[1]))
    # Flax counts the pixels in JAX's default float, which JAX_ENABLE_X64 makes float64.
    return y.astype(x.dtype)


def _apply_new(operation: Operation, inputs: list[jax.Array]) -> jax.Array:
    """An operation of version 2."""
    x = inputs[0]
    match operation["op"]:
        case "pad":
            value = jnp.float32(operation["value"])
            return jnp.pad(x, ((0, 0), *map(tuple, operation["pads"]), (0, 0)), constant_values=value)
        case "concat":
            return jnp.concatenate(inputs, axis=3)
        case "product":
            return x * inputs[1]
        case "global_pool":
            reduce = jnp.max if operation["kind"] == "max" else jnp.mean
            return reduce(x, (1, 2), keepdims=True)
        case "resize":
            (down, across), (count, height, width, channels) = operation["factor"], x.shape
            shape = (count, height * down, width * across, channels)
            return jax.image.resize(x, shape, operation["method"])
        case "elementwise" if operation["function"] == "leaky_relu":
            return jnp.where(x >= 0, x, jnp.float32(operation["alpha"]) * x)
        case "elementwise":
            return FUNCTIONS[operation["function"]](x)
    raise ValueError(f"unknown operation {operation['op']!r}")


def _apply(operation: Operation, inputs: list[jax.Array], weights: dict[str, jax.Array]) -> jax.Array:
    op, x = operation["op"], inputs[0]
    tensor = operation.get("tensor", "")
    if op == "affine":
        scale, offset = (weights[f"{tensor}.{part}"].reshape(1, 1, 1, -1) for part in ("scale", "offset"))
        low, high = operation.get("min"), operation.get("max")
        y = x * scale + offset
        y = y if low is None else jnp.maximum(y, jnp.float32(low))
        return y if high is None else jnp.minimum(y, jnp.float32(high))
    if op == "conv":
        return _convolve(x, weights[tensor], operation)
    if op in ("average_pool", "max_pool"):
        return _pool(x, operation)
    if op == "pad_channels":
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, operation["channels"] - x.shape[3])))
    if op == "add":
        return x + inputs[1]
    return x.mean((1, 2)) if op == "global_average" else _apply_new(operation, inputs)


class LoadedModel:
    """A packed model on the device, see `load_packed`.

    Attributes:
      packed: what the file holds.
      description: the fields of ``model.json`` that the file knows.
      weights: the arrays on the device by name: bits of kernels, and multiply-adds.
    """

    def __init__(self, packed: PackedModel) -> None:
        if numpy_reader.is_integer(packed.metadata):
            raise UserError(
                "this packed model has 8-bit activations: `open_model` runs it, `load_packed` does not"
            )
        self.packed = packed
        self.description = packed.description
        self.weights: dict[str, jax.Array] = {
            name: jnp.asarray(tensor)
            for name, tensor in packed.tensors.items()
            if name not in (*numpy_reader.RESERVED, *packed.kernels)
        }
        self.weights |= {name: jnp.asarray(packed.weights(name)) for name in packed.kernels}
        self._bounded = numpy_reader.is_bounded(packed.metadata, packed.tensors)
        self._batch_size = max(1, min(BATCH_SIZE, MAX_NUMBERS // packed.most_numbers))
        self._run = jax.jit(self.apply)

    def apply(self, weights: dict[str, jax.Array], images: jax.Array, train: bool = False) -> jax.Array:
        """The pure function behind `predict`, called as a Flax model's ``apply`` is.

        Args:
          weights: as the attribute; kernels may be float32 ``[F_h, F_w, C_in, C_out]`` instead.
          images: ``[N, H, W, C]``.
          train: must be False.

        Returns:
          Logits float32 ``[N, classes]``; NaN for an image with a value beyond `numpy_reader.MAX_VALUE`,
          which only a network whose values have no known bound can have.
        """
        if train:
            raise ValueError("a packed model has nothing to train: use .model and .variables")
        if images.ndim != 4 or list(images.shape[1:]) != self.description["image_shape"]:
            size = " x ".join(map(str, self.description["image_shape"]))
            raise UserError(f"images of shape {images.shape}, but the model takes N x {size}")
        values = {"image": jnp.asarray(images, jnp.float32)}
        small = jnp.ones(images.shape[:1], bool)
        for operation in self.packed.operations:
            inputs = [values[name] for name in operation["in"]]
            result = values[operation["out"]] = _apply(operation, inputs, weights)
            if not self._bounded:
                inside = jnp.abs(result) <= numpy_reader.MAX_VALUE  # false for NaN
                small &= inside.all(axis=tuple(range(1, result.ndim)))
        return result if self._bounded else jnp.where(small[:, None], result, jnp.nan)

    def predict(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Logits float32 ``[N, classes]`` of images ``[N, H, W, C]``, uint8 or floats in 0..255.

        Jitted: compiled once for each N.
        """
        return self._run(self.weights, jnp.asarray(images))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        images = check_images(images, self.description["image_shape"])
        logits = in_batches(self.predict, images, self.description["num_classes"], self._batch_size)
        if not self._bounded and np.isnan(logits).any():
            raise UserError(f"a value of an image exceeds {numpy_reader.MAX_VALUE:.4g}: no logits")
        return logits

    @property
    def model(self) -> nn.Module:
        """The Flax network in float32.

        Raises:
          UserError: the file does not say, or its operations are of no network of this package.
        """
        self.variables  # noqa: B018  (it compares the operations)
        return self._network()

    @property
    def variables(self) -> dict[str, Any]:
        """``params`` and ``batch_stats`` for `model` that give the same logits, see `unfold`."""
        try:
            return unfold(self._network(), self.packed.graph)
        except UserError:
            raise
        except Exception as error:  # whatever the file has in the place of the fields
            raise UserError(f"the packed model names no network of this package ({error})") from error

    def _network(self) -> Any:
        try:
            fields = {**self.description["model"], "dtype": "float32"}
            return create_network(fields, self.description["num_classes"])
        except Exception as error:  # whatever the file has in the place of the fields
            raise UserError(f"the packed model names no network of this package ({error})") from error


def load_packed(path: str | Path) -> LoadedModel:
    """Reads a packed model for use with JAX.

    The device holds one bit per weight. The program unpacks each layer where it uses it, at each call, which
    takes few percent of the time (docs/results/packed.md).

    Args:
      path: of the file.

    Raises:
      UserError: see `read_packed`.
    """
    return LoadedModel(read_packed(path))


def open_packed(path: str | Path) -> Predictor:
    """A packed file as a `Predictor` that runs on JAX; raises as `load_packed` does."""
    packed = read_packed(path)
    return IntegerModel(packed) if numpy_reader.is_integer(packed.metadata) else LoadedModel(packed)
