"""``binwrn report ROOT --output DIR``: the paper's tables and figures with measured values."""

from __future__ import annotations

import argparse
from pathlib import Path

from binwrn_jax.report import REPORT_FILE, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "roots", nargs="+", type=Path, metavar="ROOT", help="folder that holds workdirs, at any depth"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument(
        "--keep-runs", action="store_true", help="copy the runs without their networks to DIR/runs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the report."""
    counts = write_report(arguments.roots, arguments.output, arguments.keep_runs)
    print(
        f"{arguments.output / REPORT_FILE}: {counts['runs']} runs, {counts['finished']} finished; "
        f"{counts['experiments']} experiments measured, {counts['other']} other runs"
    )
    return 0
