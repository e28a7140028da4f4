"""``binwrn data --dataset NAME``: prepares a data set, or says what is there and what is missing."""

from __future__ import annotations

import argparse
import contextlib
import sys

from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.tfds import TfdsDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--dataset", required=True, metavar="NAME", help=", ".join(DATASETS))
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


def run(arguments: argparse.Namespace) -> int:
    """Prepares, and counts."""
    facts = lookup(arguments.dataset)
    dataset = TfdsDataset(facts, arguments.data_dir, arguments.manual_dir)
    there = dataset.is_prepared()
    with contextlib.redirect_stdout(sys.stderr):  # what TFDS prints is progress
        counts = dataset.counts
    print(f"{facts.name} {'is' if there else 'has been'} prepared in {dataset.folder}")
    for split, count in counts.items():
        whole = facts.splits.get(split, count)
        print(
            f"  {split}: {count:,} images"
            + (f" of {whole:,}: a part of the data set" if count < whole else "")
        )
    return 0
