"""Convolution, pooling and the sums of batch norm, and the one place that chooses what computes them.

XLA's own code leaves most of a CPU unused, above all in the weight gradient. On a CPU oneDNN computes
convolutions and pools, and our code computes the sums (docs/performance.md has the numbers): in float32, and
in bfloat16 where the processor multiplies it. Accelerators, several devices, and machines without oneDNN or a
C++ compiler use XLA.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from binwrn_jax.nn import cpu

Images = Float[Array, "N H W Cin"]
Kernel = Float[Array, "F F2 Cin Cout"]
Maps = Float[Array, "N H2 W2 Cout"]
Pooled = Float[Array, "N H2 W2 Cin"]
Sums = Float[Array, "G 1 1 Cin"]  # of the images of each ghost group
Strides = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

_portable = contextvars.ContextVar("portable", default=False)
_devices: contextvars.ContextVar[int | None] = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Within it, functions are traced with XLA's own operations, which run on any machine."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


@contextlib.contextmanager
def for_devices(count: int) -> Iterator[None]:
    """Within it, functions are traced for this number of devices; outside, for all that JAX sees.

    A run uses it when it makes its mesh. One CPU device may use `binwrn_jax.nn.cpu`, several may not: a
    custom call does not divide over devices, so its operands would be gathered.
    """
    token = _devices.set(count)
    try:
        yield
    finally:
        _devices.reset(token)


def _cpu_alone(x: Array) -> bool:
    """Whether what is traced for ``x`` may call `binwrn_jax.nn.cpu`."""
    if _portable.get() or jax.default_backend() != "cpu":
        return False
    return (_devices.get() or jax.device_count()) == 1 and cpu.available(x.dtype)


def convolution(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> Maps:
    """Cross-correlation of images with a kernel of their dtype; differentiable in both.

    Args:
      x: images.
      kernel: ``[F_h, F_w, C_in, C_out]``.
      strides: along the two spatial axes.
      pads: zeros before and after each spatial axis, see `binwrn_jax.nn.layers.spatial_pads`.
    """
    if _cpu_alone(x):
        return onednn_convolution(x, kernel, strides, pads)
    return xla_convolution(x, kernel, strides, pads)


def xla_convolution(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> Maps:
    """`convolution` by XLA."""
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def onednn_convolution(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> Maps:
    """`convolution` by oneDNN in what is compiled for a CPU, by XLA in what is compiled for others."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: cpu.conv_forward(x, kernel, strides, pads),
        default=lambda x, kernel: xla_convolution(x, kernel, strides, pads),
    )


def _forward(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> tuple[Maps, tuple[Images, Kernel]]:
    return onednn_convolution(x, kernel, strides, pads), (x, kernel)


def _backward(strides: Strides, pads: Pads, saved: tuple[Images, Kernel], g: Maps) -> tuple[Images, Kernel]:
    def on_cpu(x: Images, kernel: Kernel, g: Maps) -> tuple[Images, Kernel]:
        return (
            cpu.conv_input_gradient(x, kernel, g, strides, pads),
            cpu.conv_weight_gradient(x, kernel, g, strides, pads),
        )

    def elsewhere(x: Images, kernel: Kernel, g: Maps) -> tuple[Images, Kernel]:
        return jax.vjp(lambda x, kernel: xla_convolution(x, kernel, strides, pads), x, kernel)[1](g)

    x, kernel = saved
    return jax.lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


onednn_convolution.defvjp(_forward, _backward)


# --- pooling ------------------------------------------------------------------------------------------------


def average_pool(x: Images, pool_size: Strides, strides: Strides, pads: Pads) -> Pooled:
    """Averages over windows, of the pixels inside the image also at its border; differentiable.

    Args:
      x: images.
      pool_size: height and width of a window.
      strides: along the two spatial axes.
      pads: pixels outside the image that windows cover, before and after each spatial axis.
    """
    if _cpu_alone(x):
        return onednn_average_pool(x, pool_size, strides, pads)
    return xla_average_pool(x, pool_size, strides, pads)


def xla_average_pool(x: Images, pool_size: Strides, strides: Strides, pads: Pads) -> Pooled:
    """`average_pool` by XLA."""
    return nn.avg_pool(x, pool_size, strides, pads, count_include_pad=False).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def onednn_average_pool(x: Images, pool_size: Strides, strides: Strides, pads: Pads) -> Pooled:
    """`average_pool` by oneDNN in what is compiled for a CPU, by XLA in what is compiled for others."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: cpu.pool_forward(x, pool_size, strides, pads),
        default=lambda x: xla_average_pool(x, pool_size, strides, pads),
    )


def _pool_forward(x: Images, pool_size: Strides, strides: Strides, pads: Pads) -> tuple[Pooled, Images]:
    return onednn_average_pool(x, pool_size, strides, pads), x


def _pool_backward(pool_size: Strides, strides: Strides, pads: Pads, x: Images, g: Pooled) -> tuple[Images]:
    def elsewhere(x: Images, g: Pooled) -> Images:
        return jax.vjp(lambda x: xla_average_pool(x, pool_size, strides, pads), x)[1](g)[0]

    def on_cpu(x: Images, g: Pooled) -> Images:
        return cpu.pool_gradient(g, x.shape, pool_size, strides, pads)

    return (jax.lax.platform_dependent(x, g, cpu=on_cpu, default=elsewhere),)


onednn_average_pool.defvjp(_pool_forward, _pool_backward)


# --- sums of batch norm -------------------------------------------------------------------------------------


def moments(x: Images, groups: int) -> tuple[Sums, Sums]:
    """Mean and variance by channel and group, float32; without a gradient.

    Args:
      x: images.
      groups: number of groups of consecutive images, a divisor of N.
    """
    if not _cpu_alone(x):
        return xla_moments(x, groups)
    return jax.lax.platform_dependent(
        x, cpu=lambda x: cpu.moments(x, groups), default=lambda x: xla_moments(x, groups)
    )


def xla_moments(x: Images, groups: int) -> tuple[Sums, Sums]:
    """`moments` by XLA."""
    y = jnp.asarray(x, jnp.float32).reshape(groups, -1, *x.shape[1:])
    mean = y.mean((1, 2, 3), keepdims=True)
    return mean[:, 0], jnp.square(y - mean).mean((1, 2, 3), keepdims=True)[:, 0]


def products(g: Images, x: Images, mean: Sums) -> tuple[Sums, Sums]:
    """Sums of ``g`` and of ``g (x - mean)`` by channel and group, float32.

    Args:
      g: float32 or of the dtype of ``x``.
      x: of the same shape.
      mean: of each group of consecutive images.
    """
    if not _cpu_alone(x):
        return xla_products(g, x, mean)
    return jax.lax.platform_dependent(g, x, mean, cpu=cpu.products, default=xla_products)


def xla_products(g: Images, x: Images, mean: Sums) -> tuple[Sums, Sums]:
    """`products` by XLA."""
    weights, y = (jnp.asarray(a, jnp.float32).reshape(len(mean), -1, *x.shape[1:]) for a in (g, x))
    sums = weights, weights * (y - mean[:, None])
    return sums[0].sum((1, 2, 3), keepdims=True)[:, 0], sums[1].sum((1, 2, 3), keepdims=True)[:, 0]
