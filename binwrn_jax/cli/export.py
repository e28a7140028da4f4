"""``binwrn export MODEL --format packed|onnx|... --output FILE``: to deploy, proven equal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.cli.output import (
    add_network_argument,
    check_file_output,
    check_folder_output,
    own_network,
    print_line,
)
from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.dataset import ImageOptions
from binwrn_jax.data.open import is_own, open_dataset
from binwrn_jax.data.tfds import TfdsDataset
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.calibrate import CHUNK, RULES
from binwrn_jax.deploy.export import exact_arithmetic, reference_of, write_verified
from binwrn_jax.deploy.formats import (
    START,
    Format,
    all_formats,
    format_of,
    get_format,
    open_model,
    read_model_file,
)
from binwrn_jax.deploy.packed import PackedModel, pack, write_packed
from binwrn_jax.deploy.quantize import losses, quantize
from binwrn_jax.deploy.web import write_web
from binwrn_jax.errors import UserError
from binwrn_jax.hub.huggingface import resolve
from binwrn_jax.store.model import Model

IMAGES = 100
EXAMPLES = 8
CALIBRATION_IMAGES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, packed or ONNX file")
    add_network_argument(parser)
    names = [known.name for known in all_formats() if known.write]
    parser.add_argument("--format", required=True, choices=names)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="a folder for web")
    parser.add_argument(
        "--coding",
        choices=("entropy",),
        help="packed files: code the bits without loss, which only readers of version 2 of the format take",
    )
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help=f"web: test images to try on the page, 0 for none; default {EXAMPLES}, none of own data",
    )
    parser.add_argument(
        "--activations",
        choices=("float32", "int8"),
        default="float32",
        help="int8: integers from the image to the logits, see docs/deploy.md; default %(default)s",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATASET",
        help="for int8: choose the ranges on training images of this data set; default the model's own",
    )
    parser.add_argument(
        "--calibration-images", type=int, default=CALIBRATION_IMAGES, metavar="N", help="default %(default)s"
    )
    parser.add_argument("--calibration-rule", choices=RULES, default=RULES[0], help="default %(default)s")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, kept in the file")
    parser.add_argument("--data-dir", metavar="DIR", help="prepared TFDS data; default TFDS_DATA_DIR")
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help="to compare on; default %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Exports, reads back, compares, and prints the result."""
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}: it must be at least 1")
    if arguments.examples is not None and (arguments.examples < 0 or arguments.format != "web"):
        raise UserError("--examples is a number of at least 0, for --format web")
    known, output = get_format(arguments.format), arguments.output
    arguments.model = resolve(arguments.model)
    if arguments.coding:
        if known.name != "packed":
            raise UserError("--coding is for --format packed (a web page's file is coded anyway)")
        known = dataclasses.replace(known, write=partial(write_packed, coding=arguments.coding))
    _check_output(known, output, arguments.model)
    packed, images, source, (reference, notes) = _read_source(arguments)
    if known.name == "web" and "RANDOM" not in source:
        public = packed.metadata.get("dataset") in DATASETS  # own images are shown only if they are asked for
        count = (EXAMPLES if public else 0) if arguments.examples is None else arguments.examples
        known = dataclasses.replace(known, write=partial(write_web, examples=images[:count]))
    changes: list[str] = []
    if arguments.activations == "int8":
        packed, reference, changes = _in_integers(arguments, packed, images, reference)
    lines = [*write_verified(known, packed, output, images, reference), *changes]
    print_line(f"{output}: {known.summary(output, packed)}")
    print_line(f"compared on {source}")
    for line in (*notes, *lines):
        print_line(line)
    return 0


def _check_output(known: Format, output: Path, model: Path) -> None:
    """Refuses to replace what is no earlier export in this format."""
    if known.mark:
        check_folder_output(output, [model], f"{known.name} folder of `binwrn export`", known.mark)
        return
    for path in (output, *(output.with_suffix(suffix) for suffix in known.companions)):
        what = f"{known.name} file of `binwrn export`"
        check_file_output(path, [model], what, partial(_written_here, known))


def _read_source(
    arguments: argparse.Namespace,
) -> tuple[PackedModel, np.ndarray, str, tuple[np.ndarray, tuple[str, ...]]]:
    """The packed model, images to compare on, what they are in words, and what `reference_of` gives."""
    kind = format_of(arguments.model)
    if kind is None:
        model = Model.load(arguments.model, network=own_network(arguments.network, arguments.model))
        images, source = images_for(model.description.to_dict(), arguments.images, arguments.data_dir)
        packed = pack(model, images[0], arguments.license)
        return packed, images, source, reference_of(model, images)
    packed = read_model_file(arguments.model, kind)
    if arguments.license:
        packed = dataclasses.replace(packed, metadata={**packed.metadata, "license": arguments.license})
    images, source = images_for(packed.description, arguments.images, arguments.data_dir)
    with exact_arithmetic():
        return packed, images, source, (open_model(arguments.model)(images), ())


def _in_integers(
    arguments: argparse.Namespace, packed: PackedModel, images: np.ndarray, reference: np.ndarray
) -> tuple[PackedModel, np.ndarray, list[str]]:
    """The model with 8-bit activations, its logits by NumPy's reader, and lines on what the 8 bits change."""
    name, count = arguments.calibrate or packed.description.get("dataset"), arguments.calibration_images
    if count < 1:
        raise UserError(f"--calibration-images is {count}: it must be at least 1")
    calibration, source = calibration_images(name, packed.description, count, arguments.data_dir)
    integer = quantize(packed, calibration, arguments.calibration_rule)
    logits = numpy_reader.Model(integer.metadata, integer.tensors)(images)
    largest = float(np.abs(reference).max()) or 1.0
    same = int((logits.argmax(1) == reference.argmax(1)).sum())
    notes = [
        f"8-bit activations, calibrated on {source}: {same} of {len(images)} predictions as with float32, "
        f"logits within {np.abs(logits - reference).max() / largest:.1e} of the largest",
        "what 8 bits change, root mean square relative to the value:",
        *(
            f"  {loss.name:<12} {loss.type:<4} {loss.error:.4f}"
            for loss in losses(packed, integer, images[:CHUNK])
        ),
    ]
    return integer, logits, notes


def calibration_images(
    name: str | None, description: dict[str, Any], count: int, data_dir: str | None
) -> tuple[np.ndarray, str]:
    """Training images of a data set to calibrate on, uint8 ``[N, H, W, C]``, and what they are in words.

    Args:
      name: of the data set; None where nobody says it.
      description: of the model: ``image_shape``.
      count: at most so many.
      data_dir: of prepared data sets, None for the default.

    Raises:
      UserError: no data set, one that is not prepared, or one with images of another shape.
    """
    if not name:
        raise UserError("the model does not say its data set: --calibrate DATASET names one for int8")
    options = ImageOptions.of_model(name, description, skip_broken=True) if is_own(name) else None
    dataset = open_dataset(name, data_dir, options)
    if list(dataset.info.image_shape) != list(description["image_shape"]):
        raise UserError(
            f"images of {name} are {list(dataset.info.image_shape)}, "
            f"but the model takes {description['image_shape']}"
        )
    with contextlib.redirect_stdout(sys.stderr):
        images = dataset.arrays(dataset.info.train_split, count).images
    return images, f"{len(images)} images of {name} {dataset.info.train_split}"


def _written_here(known: Format, path: Path) -> bool:
    """Whether a file is an earlier export in a format, or a companion of one."""
    with open(path, "rb") as file:
        start = file.read(START)
    return known.recognises(start, path.stat().st_size) and known.made_here(start)


def images_for(description: dict[str, Any], count: int, data_dir: str | None) -> tuple[np.ndarray, str]:
    """Images to compare a model's files on: real ones if its data set is at hand, nothing is downloaded.

    Args:
      description: of the model: ``dataset``, ``image_shape``.
      count: at most so many.
      data_dir: of prepared data sets, None for the default.

    Returns:
      uint8 ``[N, H, W, C]``, and what they are in words.
    """
    name, shape = description.get("dataset"), tuple(description["image_shape"])
    found = _real_images(str(name), shape, description, count, data_dir)
    if found:
        return found[0], f"{len(found[0])} real images, {name} {found[1]}"
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    why = f"{name} is not prepared here" if name else "the model does not say its data set"
    return images, f"{count} RANDOM images, as {why}"


def _real_images(
    name: str, shape: tuple[int, ...], description: dict[str, Any], count: int, data_dir: str | None
) -> tuple[np.ndarray, str] | None:
    """Images of the split whose error is reported, and its name, if they are at hand."""
    try:
        if is_own(name):
            place = name.partition(":")[2]
            if name.startswith("hf:") and not Path(place).exists():
                return None
            options = ImageOptions.of_model(name, description, skip_broken=True)
            dataset = open_dataset(name, data_dir, options)
        elif name in DATASETS and TfdsDataset(lookup(name), data_dir).is_prepared():
            dataset = open_dataset(name, data_dir)
        else:
            return None
        if dataset.info.image_shape != shape:
            return None
        # What TFDS prints while it prepares `digits` is no result.
        with contextlib.redirect_stdout(sys.stderr):
            return dataset.arrays(dataset.info.test_split, count).images, dataset.info.test_split
    except UserError:  # own images that have moved, a damaged folder: other images will do
        return None
