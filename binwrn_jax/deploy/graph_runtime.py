"""The operations of a graph in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binwrn_jax.graph.operations import INPUT, Graph, Operation
from binwrn_jax.nn.operations import convolution

Tensors = Mapping[str, jax.Array]

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def run(graph: Graph, tensors: Mapping[str, Tensors], images: jax.Array) -> jax.Array:
    """The logits of a graph, float32 ``[N, classes]``.

    Args:
      graph: of a network.
      tensors: those of each operation by the name of its output; float32, but for signs.
      images: ``[N, H, W, C]``.
    """
    values = {INPUT: jnp.asarray(images, jnp.float32)}
    for operation in graph.operations:
        inputs = [values[name] for name in operation.inputs]
        values[operation.output] = compute(operation, tensors.get(operation.output, {}), inputs)
    return values[graph.output].reshape(len(images), -1)


def compute(operation: Operation, tensors: Tensors, inputs: list[jax.Array]) -> jax.Array:
    """One operation on images ``[N, H, W, C]``, float32."""
    attributes, x = operation.attributes, inputs[0]
    match operation.kind:
        case "affine":
            y = x * tensors["scale"].astype(jnp.float32) + tensors["offset"].astype(jnp.float32)
            return _limited(y, attributes["min"], attributes["max"])
        case "conv":
            return _convolution(x, tensors, attributes)
        case "average_pool" | "max_pool":
            window, stride, pads = (attributes[key] for key in ("window", "stride", "pads"))
            if operation.kind == "max_pool":
                return nn.max_pool(x, window, stride, pads)
            return nn.avg_pool(x, window, stride, pads, count_include_pad=False)
        case "global_average":
            return x.mean((1, 2), keepdims=True)
        case "pad_channels":
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, attributes["channels"] - x.shape[3])))
        case "pad":
            return jnp.pad(x, ((0, 0), *attributes["pads"], (0, 0)), constant_values=attributes["value"])
        case "add":
            return x + inputs[1]
        case "multiply":
            return x * inputs[1]
        case "concatenate":
            return jnp.concatenate(inputs, axis=3)
        case "resize":
            down, across = attributes["factors"]
            if attributes["method"] == "bilinear":
                shape = (len(x), x.shape[1] * down, x.shape[2] * across, x.shape[3])
                return jax.image.resize(x, shape, "bilinear")
            return jnp.repeat(jnp.repeat(x, down, axis=1), across, axis=2)
        case "function" if attributes["function"] == "leaky_relu":
            return jnp.where(x < 0, jnp.float32(attributes["slope"]) * x, x)
        case "function":
            return FUNCTIONS[attributes["function"]](x)
    raise ValueError(f"unknown operation {operation.kind!r}")


def _limited(x: jax.Array, low: float | None, high: float | None) -> jax.Array:
    x = x if low is None else jnp.maximum(x, jnp.float32(low))
    return x if high is None else jnp.minimum(x, jnp.float32(high))


def _convolution(x: jax.Array, tensors: Tensors, attributes: Mapping[str, Any]) -> jax.Array:
    kernel = tensors["signs"] if "signs" in tensors else tensors["kernel"]
    stride, pads = attributes["stride"], attributes["pads"]
    kernel = kernel.astype(jnp.float32)
    if attributes["groups"] == 1 and attributes["dilation"] == (1, 1):
        return convolution(x, kernel, stride, pads)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        pads,
        rhs_dilation=attributes["dilation"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=attributes["groups"],
    )
