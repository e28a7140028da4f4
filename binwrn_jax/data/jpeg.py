"""From a stored JPEG to the pixels that a network sees: where to crop, and fast decoding.

    box = scale_aspect_box(375, 500, random_stream(seed, epoch, record))
    pixels = decode(jpeg, [box])[0]           # uint8 [224, 224, 3]

Pixels stay 0..255; the network's first batch norm normalises them. The decoder is
libjpeg-turbo (`simplejpeg`) with its exact DCT and its smooth chroma upsampling; where the crop is at least
twice as large as the result it decodes at 1/2, 1/4 or 1/8 of the size, which is cheaper and averages. What
remains is resized bilinearly (OpenCV). No Python library offers libjpeg-turbo's cropped decoding.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

SIZE = 224  # side of the images that the networks see
SHORT_SIDE = 256  # at test time, an image is scaled to this before the central SIZE is cut out

# Short sides of the 5 scales for 25 crops. The paper does not name them; these are the ones that He et al.
# 2015b, whose scale augmentation it uses, average over at test time.
CROP_SCALES = (224, 256, 384, 480, 640)
POSITIONS = 5
CROPS = (1, len(CROP_SCALES) * POSITIONS)

# Streams of random numbers beside those of the order of an epoch, whose second word is the epoch.
_TRAIN, _TEST = 1 << 32, (1 << 32) + 1


class Box(NamedTuple):
    """A rectangle of an image, in its stored pixels."""

    top: int
    left: int
    height: int
    width: int


def random_stream(seed: int, epoch: int, record: int) -> np.random.Generator:
    """The random numbers with which one image is augmented in one epoch; they depend on nothing else."""
    return np.random.Generator(np.random.Philox(key=[seed, _TRAIN], counter=[0, epoch, record, 0]))


def scale_aspect_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """The scale and aspect augmentation of Szegedy et al. 2015.

    The area is uniform in 8 % to 100 % of the image, the logarithm of width / height uniform between
    3/4 and 4/3, the position uniform. A box that does not fit is drawn again, up to ten times; then the
    result is the largest central box of an allowed aspect.
    """
    ratios = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        aspect = math.exp(rng.uniform(*ratios))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scale_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """The scale augmentation of He et al. 2015b: short side uniform in 256..480, a 224x224 crop at random."""
    return _square(height, width, int(rng.integers(256, 481)), rng)


def center_box(height: int, width: int) -> Box:
    """The single crop at test time: the central 224x224 of the image scaled to a short side of 256."""
    side = _side(height, width, SHORT_SIDE)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def crop_boxes(height: int, width: int, record: int, crops: int = 1) -> list[Box]:
    """The crops of an image at test time (section 3.3).

    Args:
      height: of the image.
      width: of the image.
      record: index of the image in its split, which seeds the positions.
      crops: 1 for the central one, 25 for 5 random positions at each of `CROP_SCALES`.
    """
    if crops == 1:
        return [center_box(height, width)]
    rng = np.random.Generator(np.random.Philox(key=[0, _TEST], counter=[0, 0, record, 0]))
    return [_square(height, width, short, rng) for short in CROP_SCALES for _ in range(POSITIONS)]


def _side(height: int, width: int, short_side: int) -> int:
    """Side, in stored pixels, of a crop of SIZE from an image scaled to a short side."""
    return max(1, round(min(height, width) * SIZE / short_side))


def _square(height: int, width: int, short_side: int, rng: np.random.Generator) -> Box:
    side = _side(height, width, short_side)
    return Box(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)


# How a training image is cropped while it is decoded, by augmentation; other augmentations: centrally.
BOXES: dict[str, Callable[[int, int, np.random.Generator], Box]] = {
    "scale_aspect_flip": scale_aspect_box,
    "scale_flip": scale_box,
}


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width of an array ``[H, W, C]``, or of an encoded image, without decoding it.

    Raises:
      ValueError: it is no image.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    encoded = image
    import simplejpeg

    if simplejpeg.is_jpeg(encoded):
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
        return height, width
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            return opened.height, opened.width
    except OSError as error:
        raise ValueError("no image that Pillow reads") from error


def decode(
    encoded: bytes, boxes: Sequence[Box], out: UInt8[np.ndarray, "N H W 3"] | None = None, size: int = SIZE
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decodes an image once and cuts crops out of it.

    Args:
      encoded: a JPEG, or what Pillow reads (some copies of ImageNet have a PNG and CMYK JPEGs).
      boxes: N rectangles of the image as stored.
      out: uint8 ``[N, size, size, 3]`` to write into.
      size: side of the result.

    Returns:
      uint8 ``[N, size, size, 3]``, RGB; ``out`` if given.

    Raises:
      ValueError: it cannot be decoded. Damage that libjpeg only warns about is accepted, as in TensorFlow.
    """
    height, width = image_size(encoded)
    factor = 1
    while factor < 8 and min(min(box.height, box.width) for box in boxes) >= 2 * factor * size:
        factor *= 2
    pixels = _decode(encoded, height, width, factor)
    return resize(pixels, [scaled(box, (height, width), pixels.shape[:2]) for box in boxes], out, size)


def _decode(encoded: bytes, height: int, width: int, factor: int) -> UInt8[np.ndarray, "H W 3"]:
    """The whole image at 1 / factor of its size: uint8 ``[H, W, 3]``."""
    import simplejpeg

    if simplejpeg.is_jpeg(encoded) and simplejpeg.decode_jpeg_header(encoded, strict=False)[2] not in (
        "CMYK",
        "YCCK",
    ):
        return simplejpeg.decode_jpeg(
            encoded, "RGB", min_height=-(-height // factor), min_width=-(-width // factor),
            min_factor=factor, strict=False,
        )  # fmt: skip
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"cannot be decoded ({error})") from error


def scaled(box: Box, old: tuple[int, ...], new: tuple[int, ...]) -> Box:
    """The box of an image of another size (height, width), to whole pixels inside of it."""
    if old == new:
        return box
    y, x = new[0] / old[0], new[1] / old[1]
    height, width = max(1, round(box.height * y)), max(1, round(box.width * x))
    return Box(
        min(round(box.top * y), new[0] - height), min(round(box.left * x), new[1] - width), height, width
    )


def resize(
    pixels: UInt8[np.ndarray, "H0 W0 C"],
    boxes: Sequence[Box],
    out: UInt8[np.ndarray, "N H W C"] | None = None,
    size: int = SIZE,
) -> UInt8[np.ndarray, "N H W C"]:
    """Crops of an image in memory, uint8 ``[H, W, C]``, as uint8 ``[N, size, size, C]``; C is 1 or 3."""
    import cv2

    cv2.setNumThreads(1)  # processes share the cores already
    if out is None:
        out = np.empty((len(boxes), size, size, pixels.shape[2]), np.uint8)
    for box, target in zip(boxes, out, strict=True):
        crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        # Bilinear samples skip pixels where an image shrinks to less than half: there, average.
        shrinks = min(box.height, box.width) >= 2 * size
        rule = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        if crop.shape[2] == 1:  # OpenCV has no channel axis then
            target[..., 0] = cv2.resize(crop[..., 0], (size, size), interpolation=rule)
        else:
            cv2.resize(crop, (size, size), target, interpolation=rule)
    return out
