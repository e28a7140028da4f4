"""Image files to the pixels that a network takes, by one rule for training, `predict` and notebooks.

    pixels = from_file(open("photo.jpg", "rb"), shape=(32, 32, 3))          # uint8 [32, 32, 3]

The rule, in this order (docs/own-data.md has it too):

1. Only the first picture of a file is used, also of an animation. It is rotated by its EXIF orientation.
2. 16-bit grey becomes 8-bit: v becomes round(v / 257). Other numbers (32-bit, floating-point) are refused.
3. Transparent parts become white.
4. The image becomes grey (``L``) or RGB, by the network's channels, with Pillow's ``convert``: grey is
   round(0.299 R + 0.587 G + 0.114 B), palettes and CMYK become RGB first.
5. An image of another size is resized by the rule of the model, a key of `RESIZE`.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from binwrn_jax.data import jpeg
from binwrn_jax.errors import UserError

Source = str | Path  # '-' or a file
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class UnreadableImage(Exception):
    """One image cannot be read; the others still can."""


def find_images(arguments: Iterable[str]) -> Iterator[Source]:
    """The files that the arguments name; a folder stands for the image files in it and in its folders.

    Those of a folder come sorted by their paths; what begins with a dot is left out.

    Raises:
      UserError: a folder without images, or one that cannot be read.
    """
    import PIL.Image

    for argument in arguments:
        path = Path(argument)
        if argument == "-" or not path.is_dir():
            yield argument if argument == "-" else path
            continue
        suffixes = {*PIL.Image.registered_extensions(), ".npy"}
        found = sorted(file for file in _walk(path) if file.suffix.lower() in suffixes)
        if not found:
            raise UserError(f"no image files in the folder {path}")
        yield from found


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename} ({error.strerror})") from error

    for top, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(top, name) for name in files if name[0] != ".")


def read_images(
    source: Source, shape: tuple[int, int, int], resize: str = "bilinear"
) -> Iterator[tuple[str, np.ndarray]]:
    """The images of one file, in the size and channels that a model takes.

    Args:
      source: a file, or '-' for standard input.
      shape: ``(H, W, C)`` of the model.
      resize: the rule of docs/packed-format.md for images of another size.

    Yields:
      A label for the image and its pixels, uint8 ``[H, W, C]``.

    Raises:
      UnreadableImage: with the name of the file and the reason.
    """
    name = "standard input" if source == "-" else str(source)
    try:
        file: BinaryIO = io.BytesIO(sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes())
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            several = arrays.ndim == 4
            if several and not len(arrays):
                raise ValueError("an array without images")
            for index, array in enumerate(arrays if several else [arrays]):
                yield f"{name}[{index}]" if several else name, from_array(array, shape, resize)
        else:
            file.seek(0)
            yield name, from_file(file, shape, resize)
    except OSError as error:
        # Pillow's own message names its buffer and not the file.
        reason = error.strerror or f"no image that Pillow reads, or a damaged one: {type(error).__name__}"
        raise UnreadableImage(f"cannot read {name} ({reason})") from error
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UnreadableImage(f"cannot read {name} ({reason})") from error


def from_file(
    file: BinaryIO, shape: tuple[int, int, int], resize: str = "bilinear"
) -> UInt8[np.ndarray, "H W C"]:
    """An image file's first picture, by the rule at the top of this module: uint8 ``[H, W, C]``.

    Raises:
      ValueError: values or channels that have no meaning here; Pillow raises other errors.
    """
    return cut(read_picture(file.read(), shape[2], resize), shape, resize)[0]


def read_picture(encoded: bytes, channels: int, resize: str = "bilinear") -> np.ndarray | bytes:
    """An image file's first picture, steps 1 to 4 of the rule.

    Args:
      encoded: the file's content.
      channels: 1 or 3.
      resize: with ``center_crop`` an upright colour JPEG is decoded later, at the size that is needed, as for
        ImageNet.

    Returns:
      uint8 ``[H0, W0, channels]``, or ``encoded`` itself.

    Raises:
      ValueError: values or channels that have no meaning here; Pillow raises other errors.
    """
    import PIL.Image
    import PIL.ImageOps

    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels: give .npy files")
    with _without_warnings(), PIL.Image.open(io.BytesIO(encoded)) as opened:
        if opened.width * opened.height > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
        upright = opened.getexif().get(_ORIENTATION, 1) == 1
        if resize == "center_crop" and opened.format == "JPEG" and upright and channels == 3:
            return encoded
        image = PIL.ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                raise ValueError(f"pixels of mode {image.mode} from {values.min():g} to {values.max():g}")
            image = PIL.Image.fromarray((values / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)


def measure_picture(encoded: bytes) -> tuple[tuple[int, int], bool]:
    """Decodes an image file and gives ``(height, width)``, upright, and whether it is grey.

    Raises:
      Exception: it cannot be decoded, see `read_picture`.
    """
    import PIL.Image

    with _without_warnings(), PIL.Image.open(io.BytesIO(encoded)) as opened:
        grey = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I")
    pixels = read_picture(encoded, 1 if grey else 3)
    assert isinstance(pixels, np.ndarray)
    return (pixels.shape[0], pixels.shape[1]), grey


_quiet_lock = threading.Lock()
_quiet_users: list[warnings.catch_warnings] = []


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences warnings, of unusual tags for example, in several threads at once."""
    with _quiet_lock:
        caught = _quiet_users[0] if _quiet_users else warnings.catch_warnings()
        if not _quiet_users:
            caught.__enter__()
            warnings.simplefilter("ignore")
        _quiet_users.append(caught)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users.pop()
            if not _quiet_users:
                caught.__exit__(None, None, None)


def cut(
    image: bytes | np.ndarray, shape: tuple[int, int, int], resize: str,
    boxes: Sequence[jpeg.Box] | None = None, out: UInt8[np.ndarray, "N H W C"] | None = None,
) -> UInt8[np.ndarray, "N H W C"]:  # fmt: skip
    """Crops of an image in the size that a network takes.

    Args:
      image: a JPEG (or what else `binwrn_jax.data.jpeg.decode` takes), or uint8 ``[H0, W0, C]``.
      shape: ``(H, W, C)`` of the result; H and W are equal where there are boxes.
      resize: the rule for the whole image, a key of `RESIZE`.
      boxes: the crops, in pixels of the image; None is the whole image by the rule.
      out: uint8 ``[N, H, W, C]`` to write into.

    Returns:
      uint8 ``[N, H, W, C]``, one for each box; N is 1 without boxes.

    Raises:
      ValueError: the JPEG cannot be decoded.
    """
    if isinstance(image, bytes):
        return jpeg.decode(image, boxes or [jpeg.center_box(*jpeg.image_size(image))], out, shape[0])
    if boxes is not None:
        return jpeg.resize(image, boxes, out, shape[0])
    whole = RESIZE[resize](image, shape)[None]
    if out is None:
        return whole
    out[...] = whole
    return out


def from_array(
    array: np.ndarray, shape: tuple[int, int, int], resize: str = "bilinear"
) -> UInt8[np.ndarray, "H W C"]:
    """An array uint8 ``[H, W]`` or ``[H, W, C]`` as uint8 ``[H, W, C]`` of the model's size.

    Raises:
      ValueError: another dtype, or another number of channels than the model's.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != shape[2] or 0 in array.shape:
        raise ValueError(f"{array.dtype} of shape {array.shape}, not uint8 [H, W, {shape[2]}]")
    return RESIZE[resize](array, shape)


def center_crop(
    image: UInt8[np.ndarray, "H0 W0 C"], shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "H W C"]:
    """``[H0, W0, C]`` to ``[H, W, C]`` by the rule ``center_crop``; one of the right size stays as it is."""
    if image.shape == shape:
        return image
    return jpeg.resize(image, [jpeg.center_box(*image.shape[:2])], size=shape[0])[0]


def resized(image: UInt8[np.ndarray, "H0 W0 *C"], shape: tuple[int, int, int]) -> UInt8[np.ndarray, "H W C"]:
    """``[H0, W0]`` or ``[H0, W0, C]`` to ``[H, W, C]``, the rule ``bilinear`` of docs/packed-format.md.

    Both sides are scaled to fit, each by itself; Pillow's filter averages where the image shrinks. An
    image of the right size stays as it is.
    """
    import PIL.Image

    height, width, channels = shape
    image = image.reshape(*image.shape[:2], channels)
    if image.shape == shape:
        return image
    planes = [
        PIL.Image.fromarray(image[..., c]).resize((width, height), PIL.Image.Resampling.BILINEAR)
        for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


# By the name that a model has in ``input.resize``.
RESIZE = {"bilinear": resized, "center_crop": center_crop}
