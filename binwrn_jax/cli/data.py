"""``binwrn data NAME``: prepares a data set, checks it, and prints what is there or missing."""

from __future__ import annotations

import argparse
import contextlib
import sys

from binwrn_jax.cli.output import print_line
from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.dataset import ImageOptions
from binwrn_jax.data.open import SCHEMES, is_own, open_dataset
from binwrn_jax.data.own import OwnDataset
from binwrn_jax.data.report import report
from binwrn_jax.data.tfds import TfdsDataset
from binwrn_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    forms = ", ".join(f"{scheme}:..." for scheme in SCHEMES)
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(DATASETS)}; own images: {forms}")
    parser.add_argument("--dataset", metavar="NAME", help="the same")
    parser.add_argument(
        "--manual-dir",
        metavar="DIR",
        help="files that were downloaded by hand; default downloads/manual in the data folder",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where prepared data are; default TFDS_DATA_DIR, ~/tensorflow_datasets",
    )
    parser.add_argument("--decode", action="store_true", help="decode every image of a data set by name, too")
    parser.add_argument(
        "--size", type=int, default=0, metavar="N", help="of own images as the network sees them"
    )
    parser.add_argument("--image-column", default="", metavar="NAME", help="of hf: and tfds:")
    parser.add_argument("--label-column", default="", metavar="NAME", help="of hf: and tfds:")


def run(arguments: argparse.Namespace) -> int:
    """Prepares, checks and counts; 2 where images are broken."""
    names = {arguments.name, arguments.dataset} - {None}
    if len(names) != 1:
        raise UserError("which data set? Give one name, or folder:PATH; see binwrn data --help")
    (name,) = names
    if is_own(name):
        return _describe_own(name, arguments)
    dataset = TfdsDataset(lookup(name), arguments.data_dir, arguments.manual_dir)
    there = dataset.is_prepared()
    with contextlib.redirect_stdout(sys.stderr):  # what TFDS prints is progress
        counts = dataset.counts
    print_line(f"{name} {'is' if there else 'has been'} prepared in {dataset.folder}")
    for split, count in counts.items():
        whole = lookup(name).splits.get(split, count)
        part = f" of {whole:,}: a part of the data set" if count < whole else ""
        print_line(f"  {split}: {count:,} images{part}")
    dataset.check(decode=arguments.decode)
    what = "and all images can be decoded" if arguments.decode else "(--decode reads the images, too)"
    print_line(f"  the files hold as many records {what}")
    return 0


def _describe_own(name: str, arguments: argparse.Namespace) -> int:
    options = ImageOptions(
        size=arguments.size, image_column=arguments.image_column, label_column=arguments.label_column
    )
    dataset = open_dataset(name, arguments.data_dir, options)
    assert isinstance(dataset, OwnDataset)
    for line in report(dataset):
        print_line(line)
    return 2 if dataset.broken else 0
