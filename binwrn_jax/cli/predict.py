"""``binwrn predict MODEL IMAGE...``: class names and probabilities of image files."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.cli.output import add_network_argument, check_file_output, own_network, print_line
from binwrn_jax.data.images import RESIZE, UnreadableImage, find_images, read_images
from binwrn_jax.deploy.formats import RUNTIMES, open_model
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, probabilities
from binwrn_jax.system.files import replace_file

COLUMNS = ("path", "class", "probability", "error")  # of a CSV file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, or packed, ONNX or StableHLO file")
    add_network_argument(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="file of any format that Pillow reads, .npy (uint8 [H, W], [H, W, C] or [N, H, W, C]), "
        "folder with such files at any depth, or - for standard input",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="most likely classes; default %(default)s"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per image and nothing else"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help=f"write a line for each image ({', '.join(COLUMNS)}) with its most likely class, print a count",
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="swap black and white: digits on paper are dark on light, those of digits and MNIST are not",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="for a packed file")


def run(arguments: argparse.Namespace) -> int:
    """Predicts and prints, a batch of images at a time; 2 if one could not be read."""
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}: it must be at least 1")
    if arguments.csv and arguments.json:
        raise UserError("--csv writes a file and --json prints: give one of them")
    if arguments.csv:
        inputs = [arguments.model, *map(Path, arguments.images)]
        check_file_output(arguments.csv, inputs, "CSV file of predictions", _is_csv)
    sources = list(find_images(arguments.images))
    network = own_network(arguments.network, arguments.model)
    predictor = open_model(arguments.model, runtime=arguments.runtime, network=network)
    description = predictor.description
    resize = (description.get("input") or {}).get("resize", "bilinear")
    if resize not in RESIZE:
        raise UserError(f"{arguments.model} wants images resized by {resize!r}, which this version cannot do")
    names = description.get("class_names") or [str(i) for i in range(description["num_classes"])]

    failures: list[tuple[str, str]] = []

    def readable() -> Iterator[tuple[str, np.ndarray]]:
        for source in sources:
            try:
                yield from read_images(source, tuple(description["image_shape"]), resize)
            except UnreadableImage as error:
                failures.append((str(source), str(error)))
                print_line(f"error: {error}", error=True)

    images = readable()
    rows: list[tuple[Any, ...]] = []
    while batch := list(islice(images, BATCH_SIZE)):
        pixels = np.stack([image for _, image in batch])
        logits = predictor(255 - pixels if arguments.invert else pixels)
        for (label, _), row in zip(batch, logits, strict=True):
            predictions = top_classes(row, names, arguments.top, predictor.description)
            if arguments.csv:
                rows.append((label, predictions[0]["name"], predictions[0]["probability"], ""))
            elif arguments.json:
                print_line(json.dumps({"image": label, "predictions": predictions}))
            else:
                shown = ", ".join(f"{p['name']} {100 * p['probability']:.2f} %" for p in predictions)
                print_line(f"{label}: {shown}")
    if arguments.csv:
        _write_csv(arguments.csv, [*rows, *((name, "", "", reason) for name, reason in failures)])
        print_line(f"{arguments.csv}: {len(rows)} images predicted, {len(failures)} not readable")
    return 2 if failures else 0


def _write_csv(path: Path, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    # A file's name may be bytes that are no UTF-8.
    replace_file(path, text.getvalue().encode(errors="surrogateescape"))


def _is_csv(path: Path) -> bool:
    """Whether a file is what ``--csv`` writes."""
    with open(path, "rb") as file:
        return file.readline().strip().decode(errors="replace") == ",".join(COLUMNS)


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
