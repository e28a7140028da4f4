"""``binwrn export MODEL --format packed|onnx|stablehlo|c --output FILE``: a file to deploy, proven equal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.dataset import ImageOptions
from binwrn_jax.data.open import is_own, open_dataset
from binwrn_jax.data.tfds import TfdsDataset
from binwrn_jax.deploy.export import PACKED_READERS, exact_arithmetic, reference_of, write_verified
from binwrn_jax.deploy.formats import kind_of, open_model
from binwrn_jax.deploy.packed import PackedModel, pack, read_packed, write_packed
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import Predictor
from binwrn_jax.store.model import load_model

FORMATS = ("packed", "onnx", "stablehlo", "c")
IMAGES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, packed or ONNX file")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, kept in the file")
    parser.add_argument("--data-dir", metavar="DIR", help="prepared TFDS data; default TFDS_DATA_DIR")
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help="to compare on; default %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Exports, reads back, compares, and says what came of it."""
    if arguments.images < 1:
        raise UserError(f"--images is {arguments.images}: it must be at least 1")
    kind = kind_of(arguments.model)
    if kind == "stablehlo":
        raise UserError(f"{arguments.model} is a program and no longer a network: export its packed file")
    if kind in ("packed", "onnx"):
        if kind == "packed":
            packed = read_packed(arguments.model)
        else:
            from binwrn_jax.deploy.onnx_file import read_onnx

            packed = read_onnx(arguments.model)
        if arguments.license:
            packed = dataclasses.replace(packed, metadata={**packed.metadata, "license": arguments.license})
        images, what = images_for(packed.description, arguments.images, arguments.data_dir)
        with exact_arithmetic():
            reference = open_model(arguments.model)(images)
    else:
        variables, description = load_model(arguments.model)
        images, what = images_for(description, arguments.images, arguments.data_dir)
        packed = pack(variables, description, images[0], arguments.license)
        reference = reference_of(variables, description, images)
    if arguments.format == "c":
        from binwrn_jax.deploy.c_source import write_c

        lines = write_c(packed, arguments.output, images, reference)
    else:
        write, readers = _format(arguments.format)
        lines = write_verified(lambda path: write(packed, path), arguments.output, readers, images, reference)
        size, ideal = arguments.output.stat().st_size, packed.ideal_bytes
        ratio = size / max(ideal, 1)  # there may be no convolution
        print(f"{arguments.output}: {size:,} bytes, {ratio:.4f} x the {ideal:,} bytes of its bits")

    print(f"compared on {what}")
    for line in lines:
        print(line)
    return 0


def _format(
    name: str,
) -> tuple[Callable[[PackedModel, Path], None], dict[str, Callable[[Path], Predictor]]]:
    """What writes a format, and what reads it back."""
    if name == "packed":
        return write_packed, PACKED_READERS
    if name == "onnx":
        from binwrn_jax.deploy.onnx_file import open_onnx, write_onnx

        return write_onnx, {"onnxruntime": open_onnx}
    from binwrn_jax.deploy.stablehlo import open_stablehlo, write_stablehlo

    return write_stablehlo, {"StableHLO": open_stablehlo}


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
