"""The 32x32 networks of the paper: wide ResNets and their plain twins (section 3.1, appendix A, B)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from binwrn_jax.binarize import get_rule
from binwrn_jax.errors import UserError
from binwrn_jax.models.layers import (
    PADDINGS,
    BatchNorm,
    BinaryConv,
    Images,
    Pixels,
    downsample_skip,
    shifted_relu,
)

MIN_SIZE = 8
NORMS = ("batch", "none")


def blocks_per_scale(depth: int) -> int:
    """n of ``depth = 6n + 2``: two convolutions in each of n blocks at three scales, plus first and last.

    Raises:
      UserError: the depth is not of that form; the message names the nearest that are.

    >>> blocks_per_scale(20)
    3
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        low = max(n, 1) * 6 + 2
        raise UserError(f"depth {depth} is not 6n + 2: use {low} or {low + 6}")
    return n


def base_channels(width: float) -> int:
    """Channels of the first scale, ``16 k`` rounded; the width k may be a fraction.

    Raises:
      UserError: no channel would be left.
    """
    channels = round(16 * width)
    if channels < 1:
        raise UserError(f"width {width} leaves no channel: use at least {1 / 16}")
    return channels


class WideResNet(nn.Module):
    """Post-activation wide ResNet, every convolution binarised: ``20-10`` is depth 20, width 10.

    ``input -> BN (affine) [-> ReLU] -> conv3x3 -> 3 x n blocks -> BN -> ReLU -> conv1x1 -> BN ->
    global average pool``. Parameters are named in order of use: ``conv{i}`` for i in
    0..depth-1, ``bn{i}`` before ``conv{i}``, and ``bn{depth}`` after the last convolution.

    The defaults are the paper's network for MNIST, CIFAR and SVHN with the conventions of the
    MATLAB version, which made its tables.

    Attributes:
      depth: number of convolutions, 6n + 2.
      width: k; the scales have 16k, 32k and 64k channels. Fractions are allowed.
      num_classes: N.
      weights: ``'1bit'``, ``'32bit'``, ``'bwn'``, ``'bwn_layer'`` or ``'binaryconnect'``.
      plain: leave out the skip connections and use their scale convention (appendix B).
      padding: ``'symmetric'`` (MATLAB) or ``'same'`` (Keras), which matters at stride 2.
      input_relu: ReLU after the input's BN (on in MATLAB, off in Keras).
      norm: ``'batch'``, or ``'none'`` for the follow-up without batch norm (arXiv 1907.06916):
        each hidden BN -> ReLU becomes ``max(-1, x)``, the input's BN stays.
      affine: learn the scale and offset of all BN layers and not of the input's alone
        (on for ImageNet32 and ImageNet, section 5.3).
      ghost_size: 0 for global batch statistics, else the size of the groups.
      temperature: constant that divides the logits; 1 with batch norm.
      dtype: of the activations; parameters, moments and logits are float32.

    >>> import jax
    >>> model = WideResNet(depth=8, width=0.5, num_classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> model.apply(variables, jnp.zeros((4, 8, 8, 1))).shape
    (4, 10)
    """

    depth: int = 20
    width: float = 4
    num_classes: int = 10
    weights: str = "1bit"
    plain: bool = False
    padding: str = "symmetric"
    input_relu: bool = True
    norm: str = "batch"
    affine: bool = False
    ghost_size: int = 0
    temperature: float = 1.0
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Raises a `UserError` where the attributes describe no network."""
        blocks_per_scale(self.depth)
        base_channels(self.width)
        get_rule(self.weights)
        if self.padding not in PADDINGS:
            raise UserError(f"unknown padding {self.padding!r}: choose one of {', '.join(PADDINGS)}")
        if self.norm not in NORMS:
            raise UserError(f"unknown norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        if self.num_classes < 2:
            raise UserError(f"{self.num_classes} classes are no classification: use at least 2")
        if self.temperature <= 0:
            raise UserError(f"temperature {self.temperature} must be positive")

    @nn.compact
    def __call__(self, images: Pixels, train: bool = False) -> Float[Array, "N classes"]:
        """Logits of raw images.

        Args:
          images: ``[N, H, W, C]`` with values 0..255 of any real dtype, no whitening;
            H and W at least 8.
          train: normalise by the batch's moments and update the running ones.

        Returns:
          float32 ``[N, num_classes]``.

        Raises:
          UserError: an impossible depth, width, size or name.
        """
        self.check()
        if min(images.shape[1:3]) < MIN_SIZE:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} are below {MIN_SIZE}x{MIN_SIZE}")
        conv = partial(
            BinaryConv, weights=self.weights, plain=self.plain, padding=self.padding, dtype=self.dtype
        )
        norm = partial(BatchNorm, ghost_size=self.ghost_size, dtype=self.dtype)

        def activate(x: Images, index: int) -> Images:
            if self.norm == "none":
                return shifted_relu(x)
            return nn.relu(norm(affine=self.affine, name=f"bn{index}")(x, train))

        channels = base_channels(self.width)
        x = norm(affine=True, name="bn0")(images, train)
        if self.input_relu:
            x = nn.relu(x)
        x = conv(channels, name="conv0")(x)

        index = 1
        for scale in range(3):
            features = channels * 2**scale
            for block in range(blocks_per_scale(self.depth)):
                stride = 2 if scale > 0 and block == 0 else 1
                path = conv(features, stride=stride, name=f"conv{index}")(activate(x, index))
                path = conv(features, name=f"conv{index + 1}")(activate(path, index + 1))
                index += 2
                if self.plain:
                    x = path
                elif stride == 2:
                    x = path + downsample_skip(x, features, self.padding)
                else:
                    x = path + x

        x = conv(self.num_classes, window=1, name=f"conv{index}")(activate(x, index))
        if self.norm == "batch":
            x = norm(affine=self.affine, name=f"bn{index + 1}")(x, train)
        return x.astype(jnp.float32).mean((1, 2)) / self.temperature
