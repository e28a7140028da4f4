"""``binwrn predict MODEL IMAGE...``: class names and probabilities of image files."""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from binwrn_jax.data import jpeg as imagenet
from binwrn_jax.deploy.formats import RUNTIMES, open_model
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE

Source = str | Path  # '-' or a file
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Unreadable(Exception):
    """One image cannot be read; the others still can."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, or packed, ONNX or StableHLO file")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="file of any format that Pillow reads, .npy (uint8 [H, W], [H, W, C] or [N, H, W, C]), "
        "folder of such files, or - for standard input",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="most likely classes; default %(default)s"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per image and nothing else"
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="swap black and white: digits on paper are dark on light, those of digits and MNIST are not",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="for a packed file")


def run(arguments: argparse.Namespace) -> int:
    """Predicts and prints, an image at a time; 2 if one could not be read."""
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}: it must be at least 1")
    sources = list(find_images(arguments.images))
    predictor = open_model(arguments.model, runtime=arguments.runtime)
    description = predictor.description
    resize = (description.get("input") or {}).get("resize", "bilinear")
    if resize not in RESIZE:
        raise UserError(f"{arguments.model} wants images resized by {resize!r}, which this version cannot do")
    names = description.get("class_names") or [str(i) for i in range(description["num_classes"])]

    failures = 0

    def readable() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal failures
        for source in sources:
            try:
                yield from read_images(source, tuple(description["image_shape"]), resize)
            except Unreadable as error:
                failures += 1
                print(f"error: {error}", file=sys.stderr)

    images = readable()
    while batch := list(islice(images, BATCH_SIZE)):
        pixels = np.stack([image for _, image in batch])
        logits = predictor(255 - pixels if arguments.invert else pixels)
        for (label, _), row in zip(batch, logits, strict=True):
            predictions = top_classes(row, names, arguments.top)
            if arguments.json:
                print(json.dumps({"image": label, "predictions": predictions}), flush=True)
            else:
                shown = ", ".join(f"{p['name']} {100 * p['probability']:.2f} %" for p in predictions)
                print(f"{label}: {shown}", flush=True)
    return 2 if failures else 0


def top_classes(logits: np.ndarray, names: list[str], top: int) -> list[dict[str, Any]]:
    """The most likely classes of one image, most likely first.

    Args:
      logits: float32 ``[classes]``.
      names: of the classes.
      top: at most so many.

    Returns:
      Objects with ``class`` (index), ``name`` and ``probability`` (softmax, 0..1).

    >>> top_classes(np.array([0.0, np.log(3.0)]), ["cat", "dog"], 1)
    [{'class': 1, 'name': 'dog', 'probability': 0.75}]
    """
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        {"class": int(i), "name": names[i], "probability": round(float(probabilities[i]), 6)} for i in order
    ]


def find_images(arguments: Iterable[str]) -> Iterator[Source]:
    """The files that the arguments name; a folder stands for the image files right in it, sorted.

    Raises:
      UserError: a folder without images.
    """
    import PIL.Image

    for argument in arguments:
        path = Path(argument)
        if argument == "-" or not path.is_dir():
            yield argument if argument == "-" else path
            continue
        suffixes = {*PIL.Image.registered_extensions(), ".npy"}
        try:
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.name[0] != ".")
        except OSError as error:
            raise UserError(f"cannot read the folder {path} ({error.strerror})") from error
        if not found:
            raise UserError(f"no image files in the folder {path}")
        yield from found


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
      Unreadable: with the name of the file and the reason.
    """
    name = "standard input" if source == "-" else str(source)
    try:
        file: BinaryIO = io.BytesIO(sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes())
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            several = arrays.ndim == 4
            for index, array in enumerate(arrays if several else [arrays]):
                yield f"{name}[{index}]" if several else name, from_array(array, shape, resize)
        else:
            file.seek(0)
            yield name, from_file(file, shape, resize)
    except OSError as error:
        # Pillow's own message names its buffer and not the file.
        reason = error.strerror or f"no image that Pillow reads, or a damaged one: {type(error).__name__}"
        raise Unreadable(f"cannot read {name} ({reason})") from error
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise Unreadable(f"cannot read {name} ({reason})") from error


def from_file(file: BinaryIO, shape: tuple[int, int, int], resize: str = "bilinear") -> np.ndarray:
    """An image file's first picture, upright, as uint8 ``[H, W, C]``.

    Transparent parts become white, 16-bit grey 8-bit, colours what the model's channels want. By the rule
    ``center_crop`` a JPEG is decoded as for training, unless it has to be turned.

    Raises:
      ValueError: values or channels that have no meaning here; Pillow raises other errors.
    """
    import PIL.Image
    import PIL.ImageOps

    if shape[2] not in (1, 3):
        raise ValueError(f"the model takes {shape[2]} channels: give .npy files")
    with warnings.catch_warnings():
        # Unusual tags are no reason to speak; a picture of a gigabyte is one to stop.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        with PIL.Image.open(file) as opened:
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            if resize == "center_crop" and opened.format == "JPEG" and upright:
                return center_crop_of_jpeg(file, shape)
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
        image = image.convert("L" if shape[2] == 1 else "RGB")
        return RESIZE[resize](np.asarray(image), shape)


def from_array(array: np.ndarray, shape: tuple[int, int, int], resize: str = "bilinear") -> np.ndarray:
    """An array uint8 ``[H, W]`` or ``[H, W, C]`` as uint8 ``[H, W, C]`` of the model's size.

    Raises:
      ValueError: another dtype, or another number of channels than the model's.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != shape[2] or 0 in array.shape:
        raise ValueError(f"{array.dtype} of shape {array.shape}, not uint8 [H, W, {shape[2]}]")
    return RESIZE[resize](array, shape)


def center_crop_of_jpeg(file: BinaryIO, shape: tuple[int, int, int]) -> np.ndarray:
    """The rule ``center_crop`` on a JPEG, pixel for pixel what evaluation sees: uint8 ``[H, W, 3]``."""
    file.seek(0)
    encoded = file.read()
    return imagenet.decode(encoded, [imagenet.center_box(*imagenet.image_size(encoded))], size=shape[0])[0]


def center_crop(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """``[H0, W0, C]`` to ``[H, W, C]`` by the rule ``center_crop``; one of the right size stays as it is."""
    if image.shape == shape:
        return image
    return imagenet.resize(image, [imagenet.center_box(*image.shape[:2])], size=shape[0])[0]


def resized(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
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
