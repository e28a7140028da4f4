"""The networks of the paper: wide ResNets and their plain twins (section 3.1, appendix A, B)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from binwrn_jax.errors import UserError
from binwrn_jax.nn.layers import (
    PADDINGS,
    BatchNorm,
    BinaryConv,
    Images,
    NewImages,
    Pixels,
    downsample_skip,
    shifted_relu,
    spatial_pads,
)
from binwrn_jax.nn.rules import get_rule, he_scale

NORMS = ("batch", "none")

# Blocks at each of the four scales of the ImageNet networks (He et al. 2015b).
IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


# Larger networks could not be built on any computer at hand.
MOST_LAYERS = 1202
MOST_WEIGHTS = 2**31  # of one layer


class Architecture(NamedTuple):
    """What depth and width mean.

    Attributes:
      channels: of the first scale, doubled at each further one.
      blocks: residual blocks of two convolutions at each scale.
      kernel_size: of the first convolution.
      stride: of the first convolution.
      pool: whether a 3x3 max pool of stride 2 follows it.
      min_size: least height and width of an image.
    """

    channels: int
    blocks: tuple[int, ...]
    kernel_size: int
    stride: int
    pool: bool
    min_size: int


def architecture(depth: int, width: float) -> Architecture:
    """The structure behind the paper's ``depth-width``.

    Depth 6n + 2 is the network for 32x32 images: n blocks at each of three scales with 16k, 32k and
    64k channels. Depths 18 and 34 are those for ImageNet, ``18-2.5`` in the paper: four scales from 64k
    channels on, after a 7x7 convolution of stride 2 and a max pool (section 3.1).

    Raises:
      UserError: another depth (the message names the nearest), or a width that leaves no channel.

    >>> architecture(20, 10).blocks, architecture(18, 2.5).channels
    ((3, 3, 3), 160)
    """
    imagenet = depth in IMAGENET_BLOCKS
    if not math.isfinite(64 * width):
        raise UserError(f"width {width} is no number of channels: use 4, for example")
    if depth > MOST_LAYERS:
        raise UserError(f"depth {depth} is more than this program builds: use at most {MOST_LAYERS}")
    channels = round((64 if imagenet else 16) * width)
    if channels < 1:
        raise UserError(f"width {width} leaves no channel: use at least {1 / 16}")
    widest = channels * (8 if imagenet else 4)
    weights = 9.0 * widest * widest
    if weights > MOST_WEIGHTS:
        raise UserError(
            f"width {width:g} makes layers of {weights:.1e} weights: use at most "
            f"{int(math.sqrt(MOST_WEIGHTS) / 3) // (512 if imagenet else 64)}"
        )
    if imagenet:
        return Architecture(channels, IMAGENET_BLOCKS[depth], kernel_size=7, stride=2, pool=True, min_size=32)
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        low = max(n, 1) * 6 + 2
        raise UserError(f"depth {depth} is not 6n + 2: use {low} or {low + 6}, or 18 or 34 for ImageNet")
    return Architecture(channels, (n, n, n), kernel_size=3, stride=1, pool=False, min_size=8)


class WideResNet(nn.Module):
    """Post-activation wide ResNet, every convolution binarised: ``20-10`` is depth 20, width 10.

    ``input -> BN (affine) [-> ReLU] -> conv3x3 -> 3 x n blocks -> BN -> ReLU -> conv1x1 -> BN ->
    global average pool``; for the ImageNet depths see `architecture`. Parameters are named in order of
    use: ``conv{i}`` for i in 0..depth-1, ``bn{i}`` before ``conv{i}``, and ``bn{depth}`` after the last
    convolution.

    The defaults are the paper's network for MNIST, CIFAR and SVHN with the conventions of the
    MATLAB version, which made its tables.

    Attributes:
      depth: number of convolutions, 6n + 2, or 18 or 34 for ImageNet.
      width: k; the scales have 16k, 32k and 64k channels (ImageNet: 64k to 512k). Fractions are
        allowed.
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
    >>> network = WideResNet(depth=8, width=0.5, num_classes=10)
    >>> variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> jax.jit(network.apply)(variables, jnp.zeros((4, 8, 8, 1))).shape
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
        architecture(self.depth, self.width)
        get_rule(self.weights)
        if self.padding not in PADDINGS:
            raise UserError(f"unknown padding {self.padding!r}: choose one of {', '.join(PADDINGS)}")
        if self.norm not in NORMS:
            raise UserError(f"unknown norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        if self.num_classes < 2:
            raise UserError(f"{self.num_classes} classes are no classification: use at least 2")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} must be positive")

    @nn.compact
    def __call__(self, images: Pixels, train: bool = False) -> Float[Array, "N classes"]:
        """Logits of raw images.

        Args:
          images: ``[N, H, W, C]`` with values 0..255 of any real dtype, no whitening;
            H and W at least 8, for the ImageNet depths 32.
          train: normalise by the batch's moments and update the running ones.

        Returns:
          float32 ``[N, num_classes]``.

        Raises:
          UserError: an impossible depth, width, size or name.
        """
        self.check()
        net = architecture(self.depth, self.width)
        if min(images.shape[1:3]) < net.min_size:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} are below {net.min_size}x{net.min_size}"
            )
        conv = self._convolution
        norm = partial(BatchNorm, ghost_size=self.ghost_size, dtype=self.dtype)

        def activate(x: Images, index: int) -> Images:
            if self.norm == "none":
                return shifted_relu(x)
            return nn.relu(norm(affine=self.affine, name=f"bn{index}")(x, train))

        x = norm(affine=True, name="bn0")(images, train)
        if self.input_relu:
            x = nn.relu(x)
        x = conv(x, 0, net.channels, net.kernel_size, net.stride)
        if net.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), spatial_pads((x.shape[1], x.shape[2]), 3, 2, self.padding))

        index = 1
        for scale, blocks in enumerate(net.blocks):
            features = net.channels * 2**scale
            for block in range(blocks):
                stride = 2 if scale > 0 and block == 0 else 1
                path = conv(activate(x, index), index, features, stride=stride)
                path = conv(activate(path, index + 1), index + 1, features)
                index += 2
                if self.plain:
                    x = path
                elif stride == 2:
                    x = path + downsample_skip(x, features, self.padding)
                else:
                    x = path + x

        x = conv(activate(x, index), index, self.num_classes, kernel_size=1)
        if self.norm == "batch":
            x = norm(affine=self.affine, name=f"bn{index + 1}")(x, train)
        return x.astype(jnp.float32).mean((1, 2)) / self.temperature

    def _convolution(
        self, x: Images, index: int, features: int, kernel_size: int = 3, stride: int = 1
    ) -> NewImages:
        """A layer as the paper counts it, without the batch norm before it."""
        layer = BinaryConv(
            features,
            kernel_size,
            strides=stride,
            padding=spatial_pads((x.shape[1], x.shape[2]), kernel_size, stride, self.padding),
            use_bias=False,
            dtype=self.dtype,
            rule=self.weights,
            scale=partial(he_scale, plain=self.plain),
            name=f"conv{index}",
        )
        return layer(x)
