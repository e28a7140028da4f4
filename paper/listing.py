"""``python -m paper list``: the paper's rows by name, with what they cost and what was measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError, printable
from paper import experiments, runs
from paper.experiments import CHECKOUT, MACHINES, SCALES, WIDE, Experiment
from paper.runs import Run
from paper.statistics import spread

RESULTS = CHECKOUT / "paper" / "results" / "runs"


def list_experiments(arguments: argparse.Namespace) -> int:
    """Prints the registry with measured values."""
    scales = [arguments.scale] if arguments.scale else list(SCALES)
    if arguments.names and not arguments.scale:  # a name may be of either
        scales = [s for s in SCALES if all(_exists(name, s) for name in arguments.names)] or ["full"]
    chosen = [e for scale in scales for e in experiments.select(arguments.names, scale)]
    found, problems = runs.scan(arguments.root or [root for root in (RESULTS,) if root.is_dir()])
    for problem in problems:
        print(printable(f"left out: {problem}"), file=sys.stderr)
    rows = [describe(experiment, found) for experiment in chosen]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    header = [
        "name",
        "where",
        "paper %",
        "Mimages x GFLOP",
        *(f"h {m}" for m in MACHINES),
        "measured %",
        "log",
    ]
    table = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    for line in table:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(printable(text.rstrip()))
    print(
        f"\n{len(rows)} experiments. Hours are estimates from the convolutions alone, at "
        + ", ".join(f"{_rates(rates)} TFLOP/s on {machine}" for machine, rates in MACHINES.items())
        + " (the accelerators' are a quarter of their peak, assumed and not measured)."
    )
    return 0


def _exists(name: str, scale: str) -> bool:
    try:
        return bool(experiments.select([name], scale))
    except UserError:
        return False


def describe(experiment: Experiment, existing: list[Run]) -> dict[str, Any]:
    """An experiment as ``--json`` prints it."""
    return {
        "name": experiment.name,
        "scale": experiment.scale,
        "where": list(experiment.tags),
        "command": ["train.py", *experiment.arguments()],
        "paper": dict(experiment.paper),
        "images": experiment.images_in_all,
        "gflop_per_image": experiment.gflop_per_image,
        "estimated_hours": experiment.hours(),
        "measured": [
            {
                "dtype": found.dtype,
                "seeds": [run.seed for run in found.runs],
                "error": found.errors,
                **found.optional(),
                "logs": [str(run.path / "metrics.jsonl") for run in found.runs],
            }
            for found in runs.collect_measurements(experiment, existing)
        ],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    paper = row["paper"]
    text = " / ".join(f"{paper[key]:.2f}" for key in ("error", "top5") if key in paper)
    if "error_25_crops" in paper:
        text += f", 25 crops {paper['error_25_crops']:.2f} / {paper['top5_25_crops']:.2f}"
    measured, log = "not run", "-"
    if row["measured"]:
        measured = "; ".join(_measured(found, "top5" in paper) for found in row["measured"])
        log = os.path.relpath(Path(row["measured"][0]["logs"][0]).parent)
    hours = [
        f"{h:.0f}" if h >= 100 else f"{h:.2g}" if h >= 0.01 else "<0.01"
        for h in row["estimated_hours"].values()
    ]
    cost = f"{row['images'] / 1e6:.2f} x {row['gflop_per_image']:.2f}"
    return [row["name"], ",".join(row["where"]), text or "-", cost, *hours, measured, log]


def _measured(found: dict[str, Any], top5: bool) -> str:
    """One dtype's means, with standard deviations and the number of seeds."""
    text = spread(found["error"])
    if top5 and found["top5"]:
        text += f" / {spread(found['top5'])}"
    if found["error_25_crops"]:
        text += f", 25 crops {spread(found['error_25_crops'])} / {spread(found['top5_25_crops'])}"
    dtype = "" if found["dtype"] == "float32" else f", {found['dtype']}"
    return f"{text} (n={len(found['error'])}{dtype})"


def _rates(rates: tuple[float, float]) -> str:
    """In TFLOP/s, of narrow and of wide networks; one number where they are equal."""
    narrow, wide = (f"{rate / 1e12:g}" for rate in rates)
    return wide if narrow == wide else f"{wide} (below {WIDE} channels {narrow})"
