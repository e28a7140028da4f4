"""The paper's three augmentations, on device, filled with random integers (sections 3.2, 4)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt8

from binwrn_jax.errors import UserError

Batch = UInt8[Array, "N H W C"]

# Of the paper's 32x32 images; in proportion for other sizes.
PAD, CUTOUT, SIZE = 4, 18, 32


def flip(key: PRNGKeyArray, images: Batch) -> Batch:
    """Mirrors each image left-right with probability 0.5. uint8 ``[N, H, W, C]`` in and out."""
    chosen = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def _noise(key: PRNGKeyArray, images: Batch) -> Batch:
    return jax.random.bits(key, images.shape, jnp.uint8)


def random_crop(key: PRNGKeyArray, images: Batch, pad: int | None = None) -> Batch:
    """Pads each image by ``pad`` with uniform random integers 0..255 and crops it back at random.

    Both offsets are uniform in 0..2 pad; the integers are fresh for each image, pixel and channel.
    ``pad`` is 4 for the paper's 32x32 images, and by default in that proportion to the height.
    uint8 ``[N, H, W, C]`` in and out.
    """
    pad = round(PAD * images.shape[1] / SIZE) if pad is None else pad
    key_offset, key_noise = jax.random.split(key)
    n, height, width, _ = images.shape
    shift = jax.random.randint(key_offset, (2, n), -pad, pad + 1)
    # The pixels of the padding that a crop shows are iid whatever its offset, so noise of the
    # image's own size serves and the padded canvas is never built.
    rows = jnp.arange(height)[None, :] + shift[0][:, None]
    cols = jnp.arange(width)[None, :] + shift[1][:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    moved = jnp.take_along_axis(images, rows.clip(0, height - 1)[:, :, None, None], axis=1)
    moved = jnp.take_along_axis(moved, cols.clip(0, width - 1)[:, None, :, None], axis=2)
    return jnp.where(inside[..., None], moved, _noise(key_noise, images))


def cutout(key: PRNGKeyArray, images: Batch, size: int | None = None) -> Batch:
    """Replaces a ``size`` x ``size`` patch of each image by uniform random integers 0..255.

    The patch's top-left index is uniform from ``-(size - 2)`` to ``H - 1`` (-16 to 31 for the
    paper's 18 on 32x32), likewise for columns, so that it is cut off at the borders. By default
    the size is in that proportion to the height. uint8 ``[N, H, W, C]`` in and out.
    """
    size = round(CUTOUT * images.shape[1] / SIZE) if size is None else size
    key_row, key_col, key_noise = jax.random.split(key, 3)
    n, height, width, _ = images.shape
    top = jax.random.randint(key_row, (n, 1), -(size - 2), height)
    left = jax.random.randint(key_col, (n, 1), -(size - 2), width)
    rows = jnp.arange(height)[None, :] - top
    cols = jnp.arange(width)[None, :] - left
    patch = ((rows >= 0) & (rows < size))[:, :, None] & ((cols >= 0) & (cols < size))[:, None, :]
    return jnp.where(patch[..., None], _noise(key_noise, images), images)


AUGMENTATIONS: dict[str, tuple[Callable[[PRNGKeyArray, Batch], Batch], ...]] = {
    "none": (),
    "crop": (random_crop,),
    "flip_crop": (flip, random_crop),
    "flip_crop_cutout": (flip, random_crop, cutout),
    "crop_cutout": (random_crop, cutout),
    # Of streamed images, cropped at random while they are decoded: see `binwrn_jax.data.jpeg.BOXES`.
    "scale_aspect_flip": (flip,),
    "scale_flip": (flip,),
}


def augment(key: PRNGKeyArray, images: Batch, name: str = "flip_crop") -> Batch:
    """Applies a named list of augmentations, each with its own key.

    Args:
      key: typed PRNG key; the same key and images give the same result on any number of devices.
      images: uint8 ``[N, H, W, C]``.
      name: ``'none'`` (MNIST), ``'crop'`` (SVHN), ``'flip_crop'`` (``+`` in Table 1; ImageNet32),
        ``'flip_crop_cutout'`` (``++``) or ``'crop_cutout'``; of ImageNet ``'scale_aspect_flip'`` or
        ``'scale_flip'``, of which only the flip is made here.

    Raises:
      UserError: unknown name.
    """
    if name not in AUGMENTATIONS:
        raise UserError(f"unknown augmentation {name!r}: choose one of {', '.join(AUGMENTATIONS)}")
    for index, function in enumerate(AUGMENTATIONS[name]):
        images = function(jax.random.fold_in(key, index), images)
    return images
