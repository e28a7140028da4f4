"""The convolution of all networks, and the one place that chooses what computes it.

On a CPU alone, XLA's convolution and above all its weight gradient leave most of the processor unused;
there oneDNN computes float32 convolutions (docs/performance.md has the numbers). Accelerators, several
devices, other types, and machines without oneDNN or a C++ compiler use XLA's.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from binwrn_jax.models import onednn

Images = Float[Array, "N H W Cin"]
Kernel = Float[Array, "F F2 Cin Cout"]
Maps = Float[Array, "N H2 W2 Cout"]
Strides = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced within is for any machine: XLA's own operations only (for exported programs)."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def convolution(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> Maps:
    """Cross-correlation of images with a kernel of their dtype; differentiable in both.

    Args:
      x: images.
      kernel: as all kernels here, ``[F, F, C_in, C_out]``.
      strides: along the two spatial axes.
      pads: zeros before and after each spatial axis, see `binwrn_jax.models.layers.spatial_pads`.
    """
    # One device: a custom call does not divide over several, its operands would be gathered.
    on_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if on_cpu and not _portable.get() and x.dtype == jnp.float32 and onednn.available():
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
        cpu=lambda x, kernel: onednn.forward(x, kernel, strides, pads),
        default=lambda x, kernel: xla_convolution(x, kernel, strides, pads),
    )


def _forward(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> tuple[Maps, tuple[Images, Kernel]]:
    return onednn_convolution(x, kernel, strides, pads), (x, kernel)


def _backward(strides: Strides, pads: Pads, saved: tuple[Images, Kernel], g: Maps) -> tuple[Images, Kernel]:
    def on_cpu(x: Images, kernel: Kernel, g: Maps) -> tuple[Images, Kernel]:
        return (
            onednn.input_gradient(x, kernel, g, strides, pads),
            onednn.weight_gradient(x, kernel, g, strides, pads),
        )

    def elsewhere(x: Images, kernel: Kernel, g: Maps) -> tuple[Images, Kernel]:
        return jax.vjp(lambda x, kernel: xla_convolution(x, kernel, strides, pads), x, kernel)[1](g)

    x, kernel = saved
    return jax.lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


onednn_convolution.defvjp(_forward, _backward)
