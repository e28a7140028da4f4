"""Packed files run by JAX.

model = load_packed("model.safetensors")
logits = model.predict(images)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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


def _unpack(weight: jax.Array, operation: Operation) -> jax.Array:
    """Bits uint8 ``[C_out, ceil(K / 8)]`` to float32 ``[F_h, F_w, C_in / groups, C_out]``, in a program."""
    window, (c_in, c_out) = operation["window"], operation["channels"]
    depth = c_in // operation.get("groups", 1)
    rows = jnp.unpackbits(weight, axis=1, count=math.prod(window) * depth, bitorder="little")
    kernel = rows.reshape(c_out, *window, depth).transpose(1, 2, 3, 0)
    return jnp.where(kernel, jnp.float32(1), jnp.float32(-1))


def _convolve(x: jax.Array, kernel: jax.Array, operation: Operation) -> jax.Array:
    (stride_y, stride_x), (vertical, horizontal) = operation["stride"], operation["pads"]
    if "groups" not in operation and "dilation" not in operation:
        return convolution(x, kernel, (stride_y, stride_x), (tuple(vertical), tuple(horizontal)))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride_y, stride_x),
        (tuple(vertical), tuple(horizontal)),
        rhs_dilation=operation.get("dilation"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=operation.get("groups", 1),
    )


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
        kernel = weights[tensor]
        if kernel.dtype == jnp.uint8:
            # Not before x is there: XLA would unpack all layers first and hold them until they are used. It
            # drops an optimization_barrier on the CPU, and cannot know that activations are finite.
            kernel = kernel ^ jnp.isnan(x[:1, 0, 0, 0]).any().astype(jnp.uint8)
            kernel = _unpack(kernel, operation)
        return _convolve(x, kernel, operation)
    if op in ("average_pool", "max_pool"):
        window, stride = tuple(operation["window"]), tuple(operation["stride"])
        pads = [tuple(pad) for pad in operation["pads"]]
        if op == "max_pool":
            return nn.max_pool(x, window, stride, pads)
        # Flax counts the pixels in JAX's default float, which JAX_ENABLE_X64 makes float64.
        return nn.avg_pool(x, window, stride, pads, count_include_pad=False).astype(x.dtype)
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
      weights: the arrays on the device by name: kernels, or their bits, and multiply-adds.
    """

    def __init__(self, packed: PackedModel, keep_packed: bool = False) -> None:
        if numpy_reader.is_integer(packed.metadata):
            raise UserError(
                "this packed model has 8-bit activations: `open_model` runs it, `load_packed` does not"
            )
        self.packed = packed
        self.description = packed.description
        self.weights: dict[str, jax.Array] = {
            name: jnp.asarray(tensor if name not in packed.bits or keep_packed else packed.signs(name))
            for name, tensor in packed.tensors.items()
            if name not in (*numpy_reader.RESERVED, *packed.kernels)
        }
        self.weights |= {name: jnp.asarray(packed.weights(name)) for name in packed.kernels}
        self._bounded = numpy_reader.is_bounded(packed.metadata, packed.tensors)
        self._run = jax.jit(self.apply)

    def apply(self, weights: dict[str, jax.Array], images: jax.Array, train: bool = False) -> jax.Array:
        """The pure function behind `predict`, called as a Flax model's ``apply`` is.

        Args:
          weights: as the attribute.
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
        logits = in_batches(self.predict, images, self.description["num_classes"], BATCH_SIZE)
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


def load_packed(path: str | Path, keep_packed: bool = False) -> LoadedModel:
    """Reads a packed model for use with JAX.

    Args:
      path: of the file.
      keep_packed: keep one bit per weight in the device's memory too and unpack inside the program,
        anew at each call: 32 times less memory for the weights, and slower (docs/results/packed.md).

    Raises:
      UserError: see `read_packed`.
    """
    return LoadedModel(read_packed(path), keep_packed)


def open_packed(path: str | Path) -> Predictor:
    """A packed file as a `Predictor` that runs on JAX; raises as `load_packed` does."""
    packed = read_packed(path)
    return IntegerModel(packed) if numpy_reader.is_integer(packed.metadata) else LoadedModel(packed)
