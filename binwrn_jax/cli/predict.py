"""``binwrn predict MODEL IMAGE...``: class names and probabilities of image files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.cli.output import add_network_argument, own_network, print_line
from binwrn_jax.data.images import RESIZE, UnreadableImage, find_images, read_images
from binwrn_jax.deploy.formats import RUNTIMES, open_model
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, probabilities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, or packed, ONNX or StableHLO file")
    add_network_argument(parser)
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
    network = own_network(arguments.network, arguments.model)
    predictor = open_model(arguments.model, runtime=arguments.runtime, network=network)
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
            except UnreadableImage as error:
                failures += 1
                print_line(f"error: {error}", error=True)

    images = readable()
    while batch := list(islice(images, BATCH_SIZE)):
        pixels = np.stack([image for _, image in batch])
        logits = predictor(255 - pixels if arguments.invert else pixels)
        for (label, _), row in zip(batch, logits, strict=True):
            predictions = top_classes(row, names, arguments.top, predictor.description)
            if arguments.json:
                print_line(json.dumps({"image": label, "predictions": predictions}))
            else:
                shown = ", ".join(f"{p['name']} {100 * p['probability']:.2f} %" for p in predictions)
                print_line(f"{label}: {shown}")
    return 2 if failures else 0


def top_classes(
    logits: np.ndarray, names: list[str], top: int, description: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The most likely classes of one image, most likely first.

    Args:
      logits: float32 ``[classes]``.
      names: of the classes.
      top: at most so many.
      description: of the model, see `binwrn_jax.evaluation.probabilities`.

    Returns:
      Objects with ``class`` (index), ``name`` and ``probability`` (softmax, 0..1).

    >>> top_classes(np.array([0.0, np.log(3.0)]), ["cat", "dog"], 1, {})
    [{'class': 1, 'name': 'dog', 'probability': 0.75}]
    """
    shares = probabilities(logits, description)
    order = np.argsort(-shares, kind="stable")[:top]
    return [{"class": int(i), "name": names[i], "probability": round(float(shares[i]), 6)} for i in order]
