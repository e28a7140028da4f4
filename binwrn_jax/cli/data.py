"""``binwrn data --dataset NAME``: prepares a data set, or says what is there and what is missing."""

from __future__ import annotations

import argparse
import contextlib
import sys

from binwrn_jax.data.sources import DATASETS, WHOLE, dataset_spec, is_prepared, prepare


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
    spec = dataset_spec(arguments.dataset)
    there = is_prepared(spec.name, arguments.data_dir)
    with contextlib.redirect_stdout(sys.stderr):  # what TFDS prints is progress
        folder, counts = prepare(spec.name, arguments.data_dir, arguments.manual_dir)
    print(f"{spec.name} {'is' if there else 'has been'} prepared in {folder}")
    for split, count in counts.items():
        whole = WHOLE.get(spec.name, {}).get(split, count)
        print(
            f"  {split}: {count:,} images"
            + (f" of {whole:,}: a part of the data set" if count < whole else "")
        )
    return 0
