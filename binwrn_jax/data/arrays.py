"""Checks of images and labels that come from outside, before anything is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from binwrn_jax.errors import UserError


def check_images(images: Any, image_shape: tuple[int, ...] | None = None) -> UInt8[np.ndarray, "N H W C"]:
    """Returns the images as they are if they are uint8 ``[N, H, W, C]``.

    Args:
      images: what a caller gave.
      image_shape: ``(H, W, C)`` that they must have; None for any.

    Raises:
      UserError: another number of axes, another dtype or another shape; the message says how to mend it.
    """
    images = np.asarray(images)
    if images.ndim != 4:
        remedy = "add the axis of the channels: images[..., None]" if images.ndim == 3 else "reshape them"
        raise UserError(f"images have the shape {images.shape}, not [N, H, W, C]: {remedy}")
    if images.dtype != np.uint8:
        remedy = "give integers 0 to 255: images.astype(np.uint8)"
        if np.issubdtype(images.dtype, np.floating) and images.size and images.max() <= 1:
            remedy = "give integers 0 to 255: (255 * images).round().astype(np.uint8)"
        raise UserError(f"images are {images.dtype}, not uint8: {remedy}")
    if image_shape is not None and images.shape[1:] != tuple(image_shape):
        raise UserError(f"images are of shape {images.shape[1:]}, but the network takes {tuple(image_shape)}")
    return images


def check_labels(labels: Any, num_classes: int, count: int | None = None) -> Int32[np.ndarray, " N"]:
    """Returns the labels as int32 ``[N]`` if they are integers from 0 to ``num_classes - 1``.

    Args:
      labels: what a caller gave.
      num_classes: number of classes.
      count: number of images that they belong to; None where there are none to compare.

    Raises:
      UserError: one-hot labels, labels that are no integers or are outside the classes, or not one for each
        image; the message says how to mend it.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == num_classes and num_classes > 1:
        raise UserError(f"labels are one-hot, of shape {labels.shape}: give integers, labels.argmax(1)")
    if labels.ndim != 1:
        remedy = ": labels[:, 0]" if labels.ndim == 2 and labels.shape[1] == 1 else ""
        raise UserError(f"labels have the shape {labels.shape}, not [N]{remedy}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels are {labels.dtype}, not integers: labels.astype(np.int32)")
    if count is not None and len(labels) != count:
        raise UserError(f"there are {len(labels)} labels for {count} images: give one for each")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        start = "; they seem to begin at 1: labels - 1" if labels.min() == 1 else ""
        raise UserError(
            f"labels are from {labels.min()} to {labels.max()}, but {num_classes} classes have the labels "
            f"0 to {num_classes - 1}{start}"
        )
    return labels.astype(np.int32)


def check_arrays(
    images: Any, labels: Any, num_classes: int
) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, " N"]]:
    """Returns a labelled set of images as uint8 ``[N, H, W, C]`` and int32 ``[N]``.

    Raises:
      UserError: see `check_images` and `check_labels`; or there are no images.
    """
    images = check_images(images)
    labels = check_labels(labels, num_classes, len(images))
    if not len(images):
        raise UserError("there are no images")
    return images, labels
