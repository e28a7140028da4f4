"""Integer networks (`int8` of docs/packed-format-2.md) run by JAX, to the last bit."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.numpy_reader import LIMITS, Integers
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.deploy.predictor import in_batches
from binwrn_jax.evaluation import BATCH_SIZE

Operation = dict[str, Any]
Weights = dict[str, jax.Array]


def _shift_right(t: jax.Array, shift: int) -> jax.Array:
    return (t + (1 << shift - 1)) >> shift if shift else t


def _divide(t: jax.Array, n: Any) -> jax.Array:
    return (2 * t + n) // (2 * n)


def _convolution(x: jax.Array, operation: Operation, kernel: jax.Array) -> jax.Array:
    # Floats add integers exactly as long as no sum exceeds their fraction.
    most = 255 * math.prod(kernel.shape[:3]) * (127 if "weights" in operation else 1)
    exact = jnp.float32 if most < 1 << 24 else jnp.float64
    result = lax.conv_general_dilated(
        x.astype(exact),
        kernel.astype(exact),
        operation["stride"],
        operation["pads"],
        rhs_dilation=operation.get("dilation"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=operation.get("groups", 1),
        precision=lax.Precision.HIGHEST,
    )
    return result.astype(jnp.int32)


def _slide(x: jax.Array, operation: Operation, start: int, reduce: Any) -> jax.Array:
    window, stride = (1, *operation["window"], 1), (1, *operation["stride"], 1)
    return lax.reduce_window(
        x, x.dtype.type(start), reduce, window, stride, ((0, 0), *operation["pads"], (0, 0))
    )


def _average_pool(x: jax.Array, operation: Operation) -> jax.Array:
    wide = x.astype(jnp.int64)
    count = _slide(jnp.ones_like(wide[:1, :, :, :1]), operation, 0, lax.add)
    return _divide(_slide(wide, operation, 0, lax.add), count)


def _resize(x: jax.Array, operation: Operation) -> jax.Array:
    down, across = operation["factor"]
    if operation["method"] == "nearest":
        return x.repeat(down, axis=1).repeat(across, axis=2)
    wide = x.astype(jnp.int64)
    above, below, low = numpy_reader.whole_steps(x.shape[1], down)
    left, right, part = numpy_reader.whole_steps(x.shape[2], across)
    low, part = low.reshape(1, -1, 1, 1), part.reshape(1, 1, -1, 1)
    rows = wide[:, above] * (2 * down - low) + wide[:, below] * low
    return _divide(rows[:, :, left] * (2 * across - part) + rows[:, :, right] * part, 4 * down * across)


def _apply(
    operation: Operation, inputs: list[jax.Array], weights: Weights, source: Integers, target: Integers
) -> jax.Array:
    """The result of one operation; see `numpy_reader.compute_integers`."""
    op, x, name = operation["op"], inputs[0], operation.get("tensor", "")
    low, high = operation.get("low", target.limits[0]), operation.get("high", target.limits[1])

    def clamped(t: jax.Array, shift: int) -> jax.Array:
        return jnp.clip(_shift_right(t, shift), low, high)

    if op == "conv":
        return _convolution(x, operation, weights[name])
    if op == "requantize":
        m, b = (
            weights[f"{name}.{part}"].astype(jnp.int64).reshape(1, 1, 1, -1)
            for part in ("multiplier", "bias")
        )
        return clamped(x.astype(jnp.int64) * m + b, operation["shift"])
    if op == "add":
        (first, second), wide = operation.get("multipliers", (1, 1)), [y.astype(jnp.int64) for y in inputs]
        return clamped(first * wide[0] + second * wide[1], operation.get("shift", 0))
    if op == "product":
        return clamped(x.astype(jnp.int64) * inputs[1] * operation["multiplier"], operation["shift"])
    if op == "table":
        return weights[name].astype(jnp.int32)[x + source.zero - LIMITS[source.type][0]] - target.zero
    if op == "average_pool":
        return _average_pool(x, operation)
    if op == "max_pool":
        return _slide(x, operation, LIMITS["i32"][0], lax.max)
    if op == "global_pool":
        if operation["kind"] == "max":
            return x.max((1, 2), keepdims=True)
        return _divide(x.astype(jnp.int64).sum((1, 2), keepdims=True), math.prod(x.shape[1:3]))
    if op == "pad":
        return jnp.pad(x, ((0, 0), *operation["pads"], (0, 0)), constant_values=operation["value"])
    if op == "pad_channels":
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, operation["channels"] - x.shape[3])))
    if op == "concat":
        return jnp.concatenate(inputs, axis=3)
    return _resize(x, operation) if op == "resize" else x.sum((1, 2))  # global_average


class IntegerModel:
    """A packed integer network on the device.

    Attributes:
      packed: what the file holds.
      description: the fields of ``model.json`` that the file knows.
      weights: the arrays on the device by name: kernels, multipliers, biases, tables.
    """

    def __init__(self, packed: PackedModel) -> None:
        self.packed, self.description = packed, packed.description
        kernels = {name: packed.weights(name).astype(np.int8) for name in (*packed.bits, *packed.kernels)}
        self.weights = {name: jnp.asarray(x) for name, x in {**kernels, **packed.integers}.items()}
        self._integers = numpy_reader.integers_of(packed.metadata, packed.value_shapes)
        self._run = jax.jit(self.apply)

    def apply(self, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits, int32 ``[N, classes]``, of images uint8 ``[N, H, W, C]``; JAX computes in 64 bits."""
        values = {"image": images.astype(jnp.int32)}
        for operation in self.packed.operations:
            kinds = self._integers[operation["in"][0]], self._integers[operation["out"]]
            result = _apply(operation, [values[name] for name in operation["in"]], weights, *kinds)
            values[operation["out"]] = result.astype(jnp.int32)
        return result.astype(jnp.int32)

    def raw_logits(self, images: np.ndarray) -> np.ndarray:
        """The integer logits, int32 ``[N, classes]``, of images uint8 ``[N, H, W, C]``."""

        def run(some: np.ndarray) -> jax.Array:
            with jax.enable_x64(True):  # products of two 32-bit numbers
                return self._run(self.weights, jnp.asarray(some))

        return in_batches(run, images, self.description["num_classes"], BATCH_SIZE, np.int32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        images = check_images(images, self.description["image_shape"])
        scale = np.asarray(self._integers[self.packed.operations[-1]["out"]].scale)
        return (self.raw_logits(images).astype(np.float64) * scale).astype(np.float32)
