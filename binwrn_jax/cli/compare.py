"""``binwrn compare RUN...``: errors, times and differences of runs, and their curves in one picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from binwrn_jax.cli.output import check_file_output, is_png, print_line
from binwrn_jax.errors import UserError
from binwrn_jax.training.compare import config_differences, overview, read_runs
from binwrn_jax.training.curves import draw_comparison
from binwrn_jax.training.progress import duration

COLUMNS = ("run", "epochs", "test error %", "95 % interval", "train error %", "loss", "time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="workdir of a run")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the curves of all runs on one another")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, the differences, and writes the curves."""
    path = arguments.png
    if path and path.suffix != ".png":
        raise UserError(f"cannot write {path}: give a name that ends in .png")
    if path:
        check_file_output(path, [], "PNG image", is_png)
    runs = read_runs(arguments.runs)
    rows, differing = [overview(run) for run in runs], config_differences(runs)
    if path:
        draw_comparison(path, {run.name: run.records for run in runs})
    if arguments.json:
        print_line(json.dumps({"runs": rows, "differences": differing}))
        return 0
    _print_table([COLUMNS, *map(_cells, rows)])
    if len(runs) > 1:
        print_line("")
        print_line("fields that differ:" if differing else "no field that affects results differs")
        _print_table([(f"  {field}", *map(str, values)) for field, values in differing.items()])
    if path:
        print_line("")
        print_line(f"curves in {path}")
    return 0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def number(name: str, digits: int = 2) -> str:
        return "-" if row[name] is None else f"{row[name]:.{digits}f}"

    interval = "-" if row["error_low"] is None else f"{number('error_low')} to {number('error_high')}"
    epochs = f"{row['epochs']:g} of {row['of_epochs']}" if not row["finished"] else f"{row['of_epochs']}"
    time = "-" if row["seconds"] is None else duration(row["seconds"])
    errors = number("test_error"), interval, number("train_error")
    return (row["run"], epochs, *errors, number("loss", 4), time)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
