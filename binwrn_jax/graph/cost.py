"""What a step costs: operations counted from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from binwrn_jax.nn.wide_resnet import architecture
from binwrn_jax.parallel.hardware import peak


def multiply_adds(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions in one forward pass of one image.

    The border counts as if it were computed, zeros included, as is usual. What is not a convolution
    (batch norm, ReLU, pools, sums) is not counted: matrix units do none of it.

    Args:
      depth: of the network, see `binwrn_jax.nn.wide_resnet.architecture`.
      width: of the network.
      num_classes: N.
      image_shape: ``(H, W, C)``.

    >>> multiply_adds(20, 10, 10, (32, 32, 3))
    4015636480
    """
    net = architecture(depth, width)

    def halved(height: int, width: int) -> tuple[int, int]:
        return -(-height // 2), -(-width // 2)

    height, columns, channels = image_shape
    if net.stride == 2:
        height, columns = halved(height, columns)
    total = height * columns * net.window**2 * channels * net.channels
    if net.pool:
        height, columns = halved(height, columns)
    channels = net.channels
    for scale, blocks in enumerate(net.blocks):
        features = net.channels * 2**scale
        if scale > 0:
            height, columns = halved(height, columns)
        total += height * columns * 9 * (channels + (2 * blocks - 1) * features) * features
        channels = features
    return total + height * columns * channels * num_classes


def training_flops(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of the convolutions to train on one image once.

    Two for a multiply-add, and three passes: forward, gradient of the input, gradient of the weights. The
    first convolution needs the gradient of its input too, for the batch norm before it.
    """
    return 6 * multiply_adds(depth, width, num_classes, image_shape)


def mfu_of_image(
    model: Mapping[str, Any],
    num_classes: int,
    image_shape: tuple[int, int, int],
    devices: Sequence[jax.Device],
) -> float | None:
    """Share of the peak of all devices that training on one image per second uses; None if a peak is unknown.

    Times images/s it is the model FLOP/s utilisation (MFU): `training_flops` over the published rate of the
    matrix units, see `binwrn_jax.parallel.hardware.peak`.

    Args:
      model: fields of the config, of which ``depth``, ``width`` and ``dtype`` count.
      num_classes: N.
      image_shape: ``(H, W, C)``.
      devices: those that share the batch.
    """
    peaks = [peak(device.device_kind) for device in devices]
    total = sum(known.flops(model["dtype"]) for known in peaks if known)
    if None in peaks:
        return None
    return training_flops(model["depth"], model["width"], num_classes, image_shape) / total
