"""The paper's three augmentations, with random integers (sections 3.2, 4), and two more, on the device."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

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


# --- not in the paper -------------------------------------------------------------------------------------

# Principal colours of ImageNet, by channel, and their deviations on a scale of 0 to 1 (Krizhevsky et al.
# 2012, the values of fb.resnet.torch).
_COLOURS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
_DEVIATIONS = (0.2175, 0.0188, 0.0045)
_GREY = (0.299, 0.587, 0.114)


def _to_uint8(x: Float[Array, "N H W C"]) -> Batch:
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


def lighting(key: PRNGKeyArray, images: Batch, deviation: float) -> Batch:
    """Adds to each image a random colour along the principal ones of ImageNet (Krizhevsky et al. 2012).

    Args:
      key: typed PRNG key.
      images: uint8 ``[N, H, W, 3]``.
      deviation: of the normal factors of the principal colours, 0.1 there.
    """
    factors = deviation * jax.random.normal(key, (images.shape[0], 3), jnp.float32)
    colours = (factors * jnp.asarray(_DEVIATIONS)[None]) @ jnp.asarray(_COLOURS).T
    return _to_uint8(images.astype(jnp.float32) + 255 * colours[:, None, None, :])


def jitter(key: PRNGKeyArray, images: Batch, magnitude: float) -> Batch:
    """Changes brightness, contrast, saturation and shape of each image at random, as RandAugment does.

    Brightness, contrast and, of colour images, saturation are multiplied by factors uniform in
    ``1 +- magnitude``. Then the image is rotated and sheared about its centre: both off-diagonal terms of the
    map, uniform in ``+- magnitude / 2``, are drawn alone; bilinear, with the border repeated. (Cubuk et al.
    2020 have these among 14 operations.)

    Args:
      key: typed PRNG key.
      images: uint8 ``[N, H, W, C]``.
      magnitude: 0 to 1.
    """
    count, height, width, channels = images.shape
    key_colour, key_shape = jax.random.split(key)
    factors = 1 + magnitude * jax.random.uniform(key_colour, (3, count, 1, 1, 1), jnp.float32, -1, 1)
    x = images.astype(jnp.float32) * factors[0]
    mean = x.mean((1, 2, 3), keepdims=True)
    x = mean + (x - mean) * factors[1]
    if channels == 3:
        grey = (x * jnp.asarray(_GREY)[None, None, None]).sum(-1, keepdims=True)
        x = grey + (x - grey) * factors[2]
    slopes = magnitude / 2 * jax.random.uniform(key_shape, (2, count, 1, 1), jnp.float32, -1, 1)
    rows = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[None, :, None]
    columns = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2)[None, None, :]
    return _to_uint8(
        _sample(
            x,
            rows + slopes[0] * columns + (height - 1) / 2,
            columns + slopes[1] * rows + (width - 1) / 2,
        )
    )


def _sample(
    x: Float[Array, "N H W C"], rows: Float[Array, "N H W"], columns: Float[Array, "N H W"]
) -> Float[Array, "N H W C"]:
    """Bilinear values of images at points; beyond the border those of the border."""
    count, height, width, channels = x.shape
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    flat = x.reshape(count, height * width, channels)

    def at(row: Int[Array, "N H W"], column: Int[Array, "N H W"]) -> Float[Array, "N H W C"]:
        place = (row.clip(0, height - 1) * width + column.clip(0, width - 1)).reshape(count, -1, 1)
        return jnp.take_along_axis(flat, place, axis=1).reshape(x.shape)

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down
