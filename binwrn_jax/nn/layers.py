"""The layers that all networks of the paper are made of, in Flax linen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import canonicalize_padding
from jaxtyping import Array, Float, Real

from binwrn_jax.errors import UserError
from binwrn_jax.nn.operations import Pads, Sums, average_pool, convolution, moments, products
from binwrn_jax.nn.rules import Rule, get_rule, he_scale

Images = Float[Array, "N H W C"]
Pixels = Real[Array | np.ndarray, "N H W C"]  # the network's input, uint8 for example
NewImages = Float[Array, "N H2 W2 C2"]  # of another size

PADDINGS = ("symmetric", "same")
BN_EPSILON = 1e-5


def spatial_pads(shape: tuple[int, int], size: int, stride: int, padding: str) -> Pads:
    """Pixels to add before and after each spatial axis, for a square window.

    Args:
      shape: ``(H, W)`` of the input.
      size: F, the side of the kernel or pool, odd.
      stride: 1 or 2.
      padding: ``'symmetric'`` is MATLAB's, ``(F - 1) / 2`` on each side whatever the stride;
        ``'same'`` is Keras', which on an even-sized image with stride 2 adds 0 before and 1
        after. They agree at stride 1. Trained weights depend on the choice.

    >>> spatial_pads((32, 32), 3, 2, 'symmetric'), spatial_pads((32, 32), 3, 2, 'same')
    (((1, 1), (1, 1)), ((0, 1), (0, 1)))
    """
    if padding not in PADDINGS:
        raise UserError(f"unknown padding {padding!r}: choose one of {', '.join(PADDINGS)}")
    if padding == "symmetric":
        half = (size - 1) // 2
        return (half, half), (half, half)

    def same(extent: int) -> tuple[int, int]:
        total = max((-(-extent // stride) - 1) * stride + size - extent, 0)
        return total // 2, total - total // 2

    return same(shape[0]), same(shape[1])


class BinaryConv(nn.Module):
    """`flax.linen.Conv` of images whose latent kernel passes through a weight rule (Eq. 1).

    The parameter ``kernel`` is ``[F_h, F_w, C_in / groups, C_out]``, the latent one; ``bias``, if there is
    one, ``[C_out]``. Names and defaults are those of `flax.linen.Conv`, but for the last three.

    Attributes:
      features: C_out.
      kernel_size: (F_h, F_w), or one number for both.
      strides: along the two spatial axes, or one number for both.
      padding: as Flax has it: ``'SAME'``, ``'VALID'``, ``'CIRCULAR'``, ``'REFLECT'``, a number, or for each
        spatial axis a number or a pair (before, after).
      kernel_dilation: along the two spatial axes, or one number for both.
      feature_group_count: groups of channels; C_in and C_out are multiples of it.
      use_bias: whether a bias, which is no bit, is added.
      dtype: of the computation; None for that of images and parameters.
      param_dtype: of the parameters.
      kernel_init: None for He's method, with the layer's scale as standard deviation.
      bias_init: of the bias.
      rule: name of a rule, a key of `binwrn_jax.nn.rules.RULES`, or a function ``rule(kernel, scale)``.
      scale: the layer's scale s, or a function that gives it from the kernel's shape.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: Any = "SAME"
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    rule: str | Rule = "1bit"
    scale: float | Callable[[tuple[int, ...]], float] = he_scale

    @nn.compact
    def __call__(self, x: Pixels) -> NewImages:
        """``[N, H, W, C_in]`` to ``[N, H', W', C_out]``.

        Raises:
          UserError: numbers that do not go together.
        """
        size, strides, dilation = (
            pair(value, name)
            for name, value in (
                ("kernel_size", self.kernel_size),
                ("strides", self.strides),
                ("kernel_dilation", self.kernel_dilation),
            )
        )
        groups = self.feature_group_count
        if groups < 1 or x.shape[-1] % groups or self.features % groups:
            raise UserError(
                f"feature_group_count {groups} must divide the {x.shape[-1]} input and {self.features} "
                "output channels"
            )
        shape = (*size, x.shape[-1] // groups, self.features)
        x, kernel, bias = _operands(self, x, shape)
        covered = tuple((f - 1) * d + 1 for f, d in zip(size, dilation, strict=True))
        x, pads = padded(jnp.asarray(x), self.padding, covered, strides)
        if groups == 1 and dilation == (1, 1):
            y = convolution(x, kernel, strides, pads)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                strides,
                pads,
                rhs_dilation=dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        return _plus(y, bias)


class BinaryDense(nn.Module):
    """`flax.linen.Dense` whose latent kernel ``[C_in, C_out]`` passes through a weight rule (Eq. 1).

    Attributes: those of `BinaryConv` that a dense layer has.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    rule: str | Rule = "1bit"
    scale: float | Callable[[tuple[int, ...]], float] = he_scale

    @nn.compact
    def __call__(self, x: Real[Array | np.ndarray, "*N Cin"]) -> Float[Array, "*N Cout"]:
        """``[..., C_in]`` to ``[..., C_out]``."""
        x, kernel, bias = _operands(self, x, (x.shape[-1], self.features))
        return _plus(x @ kernel, bias)


def _operands(layer: BinaryConv | BinaryDense, x: Any, shape: tuple[int, ...]) -> Any:
    """Images, used kernel and bias (or None) of a layer, in the dtype of its computation."""
    kernel = weights_of(layer, shape)
    bias = layer.param("bias", layer.bias_init, shape[-1:], layer.param_dtype) if layer.use_bias else None
    return promote_dtype(x, kernel, bias, dtype=layer.dtype)


def _plus(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def weights_of(layer: BinaryConv | BinaryDense, shape: tuple[int, ...]) -> Array:
    """The kernel that a layer uses, from its parameter ``kernel``."""
    scale = layer.scale(shape) if callable(layer.scale) else layer.scale
    init = nn.initializers.normal(scale) if layer.kernel_init is None else layer.kernel_init
    latent = layer.param("kernel", init, shape, layer.param_dtype)
    rule = get_rule(layer.rule) if isinstance(layer.rule, str) else layer.rule
    return rule(latent, scale)


def pair(value: int | Sequence[int] | None, name: str) -> tuple[int, int]:
    """One number for both spatial axes, or two.

    Raises:
      UserError: neither.
    """
    number = 1 if value is None else value
    numbers = (number, number) if isinstance(number, int) else tuple(number)
    if len(numbers) != 2 or min(numbers) < 1:
        raise UserError(f"{name} is {value}: it must be a positive number, or two for rows and columns")
    return int(numbers[0]), int(numbers[1])


def padded(x: Array, padding: Any, covered: tuple[int, ...], strides: tuple[int, int]) -> tuple[Array, Pads]:
    """Images, and the zeros that a convolution is to add around them, for any ``padding`` of Flax.

    Args:
      x: ``[N, H, W, C]``.
      padding: see `BinaryConv`.
      covered: pixels that the kernel covers down and across, dilation included.
      strides: down and across.

    Raises:
      UserError: no such padding for images.
    """
    try:
        form = canonicalize_padding(padding, 2)
    except (ValueError, TypeError):
        form = None
    if form in ("CIRCULAR", "REFLECT"):
        around = [((f - 1) // 2, f // 2) for f in covered]
        mode = "wrap" if form == "CIRCULAR" else "reflect"
        return jnp.pad(x, ((0, 0), *around, (0, 0)), mode=mode), ((0, 0), (0, 0))
    if isinstance(form, str) and form in ("SAME", "SAME_LOWER", "VALID"):
        form = jax.lax.padtype_to_pads(x.shape[1:3], covered, strides, form)
    if form is None or isinstance(form, str):
        raise UserError(f"padding {padding!r} is none for images: use 'SAME', 'VALID', numbers or pairs")
    rows, columns = form
    return x, ((int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1])))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalise(x: Images, groups: int, dtype: Any) -> tuple[Images, Sums, Sums]:
    """``x_hat = (x - mean) / sqrt(var + 1e-5)`` by group and channel, with ``mean`` and ``var``.

    Computed in float32. The gradient is written out, since JAX's own reads and keeps half as much memory
    again, and on a CPU batch norm is most of a narrow network's step. The moments have no gradient.

    Args:
      x: float32 or bfloat16.
      groups: number of groups of consecutive images, a divisor of N.
      dtype: of ``x_hat``; the moments are float32 ``[groups, 1, 1, C]``.
    """
    return _normalise(x, groups, dtype)[0]


def _each_image(sums: Sums, images: int) -> Float[Array, "M 1 1 C"]:
    """Sums of groups, repeated for each image; those of a single group stay as they are, to be broadcast."""
    return sums if len(sums) == 1 else jnp.repeat(sums, images // len(sums), axis=0)


def _normalise(
    x: Images, groups: int, dtype: Any
) -> tuple[tuple[Images, Sums, Sums], tuple[Images, Sums, Sums]]:
    mean, var = moments(x, groups)
    std = jnp.sqrt(var + BN_EPSILON)
    x_hat = (jnp.asarray(x, jnp.float32) - _each_image(mean, len(x))) / _each_image(std, len(x))
    return (x_hat.astype(dtype), mean, var), (x, mean, std)


def _normalise_gradient(
    groups: int, dtype: Any, saved: tuple[Images, Sums, Sums], cotangents: tuple[Images, Sums, Sums]
) -> tuple[Images]:
    (x, mean, std), (g, _, _) = saved, cotangents
    count = x.shape[0] // groups * x.shape[1] * x.shape[2]
    g_sum, g_along = products(g, x, mean)
    g_mean, slope, mean, std = (
        _each_image(sums, len(x)) for sums in (g_sum / count, g_along / (count * std * std), mean, std)
    )
    dx = (jnp.asarray(g, jnp.float32) - g_mean - (jnp.asarray(x, jnp.float32) - mean) * slope) / std
    return (dx.astype(x.dtype),)


normalise.defvjp(_normalise, _normalise_gradient)


class BatchNorm(nn.Module):
    """Batch normalisation by global or ghost-group statistics, with moments that can be collected.

    In training it normalises by the batch's own moments, ``x_hat = (x - mean) / sqrt(var + 1e-5)``;
    at inference by those of the collection ``batch_stats``: ``mean`` and ``var``, float32 ``[C]``.
    Training also updates ``batch_stats`` as running averages of momentum 0.99 (the Keras
    version's rule); where the collection ``moments`` is mutable, it receives the batch's
    ``mean`` and ``std = sqrt(var + 1e-5)`` (for the paper's rule, section 3.2.1).

    Attributes:
      affine: learn a scale and an offset; otherwise the layer has no parameters.
      ghost_size: 0 for the moments of the whole global batch; otherwise the batch is cut into
        groups of that many consecutive images, each normalised by itself, so that the result
        does not depend on the number of devices and needs no communication.
      dtype: of the result; moments are always computed in float32.
    """

    affine: bool = False
    ghost_size: int = 0
    momentum: float = 0.99
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Pixels, train: bool) -> Images:
        """Normalises ``[N, H, W, C]`` per channel.

        Raises:
          UserError: N is not a multiple of the ghost size.
        """
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = offset = None
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
            offset = self.param("offset", nn.initializers.zeros, (channels,), jnp.float32)

        if train:
            size = self.ghost_size or x.shape[0]
            if x.shape[0] % size:
                raise UserError(f"batch of {x.shape[0]} does not divide into ghost groups of {size}")
            y = jnp.asarray(x)
            if not jnp.issubdtype(y.dtype, jnp.floating):  # pixels, which have no gradient
                y = y.astype(jnp.float32)
            y, mean, var = normalise(y, x.shape[0] // size, jnp.float32 if self.affine else self.dtype)
            if not self.is_initializing():
                group_mean, group_var = mean.reshape(-1, channels), var.reshape(-1, channels)
                m = self.momentum
                running_mean.value = m * running_mean.value + (1 - m) * group_mean.mean(0)
                running_var.value = m * running_var.value + (1 - m) * group_var.mean(0)
                self.sow("moments", "mean", group_mean.mean(0), reduce_fn=lambda _, new: new)
                std = jnp.sqrt(group_var + BN_EPSILON)
                self.sow("moments", "std", std.mean(0), reduce_fn=lambda _, new: new)
        else:
            mean = running_mean.value.reshape(1, 1, 1, channels)
            std = jnp.sqrt(running_var.value + BN_EPSILON).reshape(1, 1, 1, channels)
            y = (jnp.asarray(x, jnp.float32) - mean) / std
        if scale is not None and offset is not None:
            y = y * scale.reshape(1, 1, 1, channels) + offset.reshape(1, 1, 1, channels)
        return y.astype(self.dtype)


def shifted_relu(x: Images) -> Images:
    """``max(-1, x)``, which replaces BN -> ReLU in the follow-up without batch norm."""
    return jnp.maximum(x, jnp.asarray(-1, x.dtype))


def downsample_skip(x: Images, channels: int, padding: str) -> NewImages:
    """Skip path of a down-sampling block: 3x3 average pool of stride 2, then zero channels.

    The average divides by the number of pixels inside the image, also at its border, as both
    released versions do. The zeros come after the data (appendix A).

    Args:
      x: ``[N, H, W, C]``.
      channels: of the result, at least C.
      padding: see `spatial_pads`.

    Returns:
      ``[N, ceil(H / 2), ceil(W / 2), channels]``.
    """
    pads = spatial_pads((x.shape[1], x.shape[2]), 3, 2, padding)
    pooled = average_pool(x, (3, 3), (2, 2), pads)
    return jnp.pad(pooled, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
