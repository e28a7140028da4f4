"""``binwrn evaluate MODEL --dataset NAME``: the exact error of a model on a data set."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.cli.output import add_network_argument, check_file_output, is_png, own_network, print_line
from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.dataset import Dataset, DatasetInfo, ImageOptions
from binwrn_jax.data.jpeg import CROPS
from binwrn_jax.data.open import SCHEMES, is_own, open_dataset
from binwrn_jax.data.streamed import StreamedImages
from binwrn_jax.deploy.formats import RUNTIMES, open_model
from binwrn_jax.errors import UserError, printable
from binwrn_jax.evaluation import (
    BATCH_SIZE,
    ArrayImages,
    Images,
    Predictor,
    class_errors,
    confusion_matrix,
    measure,
)
from binwrn_jax.nn.registry import DTYPES
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.curves import draw_confusion
from binwrn_jax.training.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, or packed, ONNX or StableHLO file")
    add_network_argument(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help=", ".join([*DATASETS, *(f"{s}:..." for s in SCHEMES)]),
    )
    parser.add_argument("--data-dir", metavar="DIR", help="prepared TFDS data; default TFDS_DATA_DIR")
    parser.add_argument("--split", help="a TFDS split such as 'test[:1000]'; default the one of the paper")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out own images that cannot be decoded"
    )
    parser.add_argument("--image-column", default="", metavar="NAME", help="of hf: and tfds:")
    parser.add_argument("--label-column", default="", metavar="NAME", help="of hf: and tfds:")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="B", help="default %(default)s")
    parser.add_argument(
        "--crops", type=int, choices=CROPS, default=1, help="25: average 5 scales x 5 positions (ImageNet)"
    )
    parser.add_argument(
        "--workers", type=int, default=-1, metavar="N",
        help="processes that decode large images; 0: threads; default one for each core",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="of the activations; default as the model has it")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="for a packed file")
    parser.add_argument("--predictions", type=Path, metavar="FILE.npz", help="write logits and labels")
    parser.add_argument(
        "--confusion", type=Path, metavar="FILE.png", help="draw which class is taken for which"
    )
    parser.add_argument("--per-class", action="store_true", help="the error of each class as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses wrong options before the model is opened.

    Raises:
      UserError: an impossible number, an unknown data set, or an output that would replace something else.
    """
    if arguments.workers < -1:
        raise UserError(f"--workers is {arguments.workers}: it must be at least -1")
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size is {arguments.batch_size}: it must be at least 1")
    inputs = [arguments.model]
    if is_own(arguments.dataset):
        inputs.append(Path(arguments.dataset.partition(":")[2]))
    else:
        lookup(arguments.dataset)  # report a wrong name before opening the model
    if arguments.predictions:
        check_file_output(arguments.predictions, inputs, "file of predictions", _has_predictions)
    if arguments.confusion:
        if arguments.confusion.suffix != ".png":
            raise UserError(f"cannot write {arguments.confusion}: give a name that ends in .png")
        check_file_output(arguments.confusion, inputs, "PNG image", is_png)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints."""
    check_arguments(arguments)
    predictor = open_model(
        arguments.model,
        runtime=arguments.runtime,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        network=own_network(arguments.network, arguments.model),
    )
    dataset = open_for(predictor, arguments)
    spec = dataset.info
    split = arguments.split or spec.test_split
    if arguments.crops > 1 and not spec.streamed:
        raise UserError(f"--crops {arguments.crops} is for large images: {spec.name} is not")
    check_fits(predictor, spec)
    # What TFDS prints while it prepares a data set is no result.
    with contextlib.redirect_stdout(sys.stderr):
        data: Images
        if spec.streamed:
            data = StreamedImages(dataset, split, arguments.limit, arguments.crops, arguments.workers)
        else:
            data = ArrayImages(dataset.arrays(split, arguments.limit))

    progress = Progress(sys.stderr if arguments.json else sys.stdout)
    result, logits, labels = measure(predictor, data, arguments.batch_size, progress.update_status)
    if arguments.predictions:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, logits=logits, predictions=logits.argmax(-1), labels=labels)
        replace_file(arguments.predictions, buffer.getvalue())
    classes = _classes(arguments, logits, labels, predictor, f"{spec.name} {split}")
    values: dict[str, Any] = {
        "model": str(arguments.model),
        "dataset": spec.name,
        "split": split,
        "crops": arguments.crops,
    }
    values |= {**result, **({"classes": classes} if arguments.per_class else {})}
    if arguments.json:
        # JSON has no NaN, which is the loss of a network that overflows.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        print_line(json.dumps(finite))
    else:
        for line in [*_lines(values), *map(_class_line, values.get("classes", ()))]:
            progress.print_line(line)
    return 0


def _classes(
    arguments: argparse.Namespace, logits: np.ndarray, labels: np.ndarray, predictor: Predictor, title: str
) -> list[dict[str, Any]]:
    """The errors of each class by name; draws the confusion matrix on request."""
    if not (arguments.confusion or arguments.per_class):
        return []
    matrix = confusion_matrix(logits, labels)
    names = list(predictor.description.get("class_names") or map(str, range(len(matrix))))
    if arguments.confusion:
        draw_confusion(arguments.confusion, matrix, names, title)
    rows = class_errors(matrix)
    for name, row in zip(names, rows, strict=True):
        wrong = row["mistaken_for"]
        row |= {"name": name, "mistaken_for": None if wrong is None else names[wrong]}
    return rows


def _class_line(row: dict[str, Any]) -> str:
    error = "-" if row["error"] is None else f"{row['error']:.2f} %"
    most = f", most often taken for {row['mistaken_for']} ({row['mistakes']})" if row["mistakes"] else ""
    return f"  {row['name']}: {row['n']} images, error {error}{most}"


def _lines(values: Mapping[str, Any]) -> list[str]:
    """The result for a person."""
    many = f", {values['crops']} crops each" if values["crops"] > 1 else ""
    return [
        f"{values['dataset']} {values['split']}, {values['n']} images{many}: error {values['error']:.2f} % "
        f"({values['n'] - values['correct']} wrong; 95 % interval {values['error_low']:.2f} to "
        f"{values['error_high']:.2f} %), top-5 error {values['top5_error']:.2f} %",
        f"loss {values['loss']:.4f} nats, calibration error {values['ece']:.2f} %; "
        f"{values['images_per_s']:.1f} images/s, {values['seconds']:.1f} s",
    ]


def open_for(predictor: Predictor, arguments: argparse.Namespace) -> Dataset:
    """The data set of the arguments; own images are read in the size and by the rule of the model.

    Raises:
      UserError: own images of other classes than the model's.
    """
    if not is_own(arguments.dataset):
        return open_dataset(arguments.dataset, arguments.data_dir)
    model = predictor.description
    options = ImageOptions.of_model(
        arguments.dataset,
        model,
        stream="yes" if arguments.crops > 1 else "auto",
        skip_broken=arguments.skip_broken,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )
    dataset = open_dataset(arguments.dataset, arguments.data_dir, options)
    names: tuple[str, ...] = tuple(model.get("class_names") or ())
    theirs = dataset.info.class_names
    numbers = tuple(str(number) for number in range(len(theirs)))  # labels without names
    if names and names != theirs and not (theirs == numbers and len(names) == len(theirs)):
        different = next((pair for pair in zip(names, theirs, strict=False) if pair[0] != pair[1]), None)
        what = f"{different[0]!r} and {different[1]!r}" if different else f"{len(names)} and {len(theirs)}"
        raise UserError(
            f"the classes of the model and of {printable(arguments.dataset)} differ ({printable(what)}): "
            "evaluate on images of the classes that it was trained on"
        )
    return dataset


def _has_predictions(path: Path) -> bool:
    """Whether a file is what ``--predictions`` writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"logits.npy", "predictions.npy", "labels.npy"} == set(archive.namelist())


def check_fits(predictor: Predictor, spec: DatasetInfo) -> None:
    """Refuses a data set that the model is not for.

    Raises:
      UserError: other classes, channels or image size. An imported network of unknown
        image size takes any size.
    """
    model = predictor.description
    if model["num_classes"] != spec.num_classes:
        raise UserError(
            f"the model has {model['num_classes']} classes and {spec.name} {spec.num_classes}: "
            "choose the data set that it was trained on"
        )
    first = 2 if model.get("image_size_assumed") else 0  # then only the channels are known
    if tuple(model["image_shape"])[first:] != spec.image_shape[first:]:
        raise UserError(
            f"the model takes images of shape {tuple(model['image_shape'])} and {spec.name} has "
            f"{spec.image_shape}: choose the data set that it was trained on"
        )
