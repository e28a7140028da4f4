"""The cost of a step: operations counted from the equations of any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from binwrn_jax.graph.equations import Equation, known_variables, program_of
from binwrn_jax.graph.trace import split
from binwrn_jax.nn.operations import portable
from binwrn_jax.parallel.hardware import peak

TRAINING_PASSES = 6  # operations of a training step for each multiply-add of the forward pass


def multiply_adds(apply: Callable[[Any, Any], Any], variables: Any, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions and matrix products in one forward pass of one image.

    As usual the border counts with its zeros. Other operations (batch norm, ReLU, pools, sums) are not
    counted, since matrix units do not compute them, nor are operations on parameters alone, which are
    computed once for all images.

    Args:
      apply: ``apply(variables, images)``, any traceable function of uint8 ``[N, H, W, C]``.
      variables: its arrays, or their shapes: no weight is read.
      image_shape: ``(H, W, C)``.

    >>> kernel = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    >>> multiply_adds(lambda w, x: x.mean((1, 2)) @ w, kernel, (8, 8, 3))
    15
    """
    leaves, _, function = split(apply, variables)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    with portable():
        program = program_of(function, leaves, images)
    known = known_variables(program)
    return sum(_products(equation) for equation in program.equations if not set(equation.outputs) <= known)


def _products(equation: Equation) -> int:
    """Multiply-adds of one equation."""
    shapes: list[tuple[int, ...]] = [tuple(getattr(aval, "shape", ())) for aval in equation.avals]
    if equation.name == "conv_general_dilated":
        features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.shape) * math.prod(shapes[1]) // int(features)
    if equation.name == "dot_general":
        contracted: Sequence[int]
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.shape) * math.prod(shapes[0][axis] for axis in contracted)
    return 0


def network_multiply_adds(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """`multiply_adds` of a Flax Linen network at inference."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return multiply_adds(network.apply, jax.eval_shape(network.init, jax.random.key(0), images), image_shape)


def training_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of a network's convolutions and matrix products to train on one image once.

    Two for a multiply-add, and three passes: forward, gradient of the input, gradient of the weights. The
    first convolution needs the gradient of its input too, for the batch norm before it.

    >>> from binwrn_jax.nn.wide_resnet import WideResNet
    >>> training_flops(WideResNet(depth=20, width=10), (32, 32, 3))
    24093818880
    """
    return TRAINING_PASSES * network_multiply_adds(network, image_shape)


class Cost(NamedTuple):
    """What a network costs, of one image.

    Attributes:
      multiply_adds: of all convolutions and matrix products in one forward pass, see `multiply_adds`.
      training_flops: floating-point operations to train on the image once: two for a multiply-add, three
        passes.
      parameters: numbers in all arrays of its variables, batch-norm moments included.
    """

    multiply_adds: int
    training_flops: int
    parameters: int


def cost(apply: Callable[[Any, Any], Any], variables: Any, input_shape: tuple[int, int, int]) -> Cost:
    """Counts what any network computes, whether it can be exported or not.

    Args:
      apply: ``apply(variables, images)``, any traceable function of uint8 ``[N, H, W, C]``.
      variables: its arrays, or their shapes as `jax.eval_shape` gives them: no weight is read.
      input_shape: ``(H, W, C)``.

    >>> kernel = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    >>> cost(lambda w, x: x.mean((1, 2)) @ w, kernel, (8, 8, 3))
    Cost(multiply_adds=15, training_flops=90, parameters=15)
    """
    count = multiply_adds(apply, variables, input_shape)
    leaves, _, _ = split(apply, variables)
    return Cost(count, TRAINING_PASSES * count, sum(math.prod(leaf.shape) for leaf in leaves))


def mfu_of_image(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    devices: Sequence[jax.Device],
    dtype: str = "float32",
) -> float | None:
    """Share of the peak of all devices that training on one image per second uses; None if a peak is unknown.

    Times images/s it is the model FLOP/s utilisation (MFU): six times `multiply_adds` over the published rate
    of the matrix units, see `binwrn_jax.parallel.hardware.peak`.

    Args:
      network: a Flax Linen module.
      image_shape: ``(H, W, C)``.
      devices: those that share the batch.
      dtype: of the activations.
    """
    peaks = [peak(device.device_kind) for device in devices]
    total = sum(known.flops(dtype) for known in peaks if known)
    if None in peaks:
        return None
    return training_flops(network, image_shape) / total
