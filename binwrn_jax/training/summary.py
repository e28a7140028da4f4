"""What is left of a finished run: ``summary.json`` and the curves."""

from __future__ import annotations

import json
import logging
import statistics
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from binwrn_jax.errors import UserError
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.curves import draw_curves
from binwrn_jax.training.records import Record


def write_summary(
    workdir: Path,
    config: ConfigDict,
    dataset: str,
    environment: dict[str, Any],
    records: list[Record],
    steps: int,
    packed: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``summary.json`` and ``curves.png``.

    Args:
      workdir: folder of the run.
      config: of the run.
      dataset: its name.
      environment: see `binwrn_jax.training.workdir.describe_environment`.
      records: of the run's log.
      steps: updates done.
      packed: ``packed_test_error`` and ``packed_bytes``, or nothing where there is no packed file.

    Returns:
      The content of ``summary.json``.
    """
    tests, epochs, train = ([r for r in records if r["kind"] == kind] for kind in ("eval", "epoch", "train"))
    rates = [record["images_per_s"] for record in train if record["images_per_s"]]
    network = f"{config.model.depth}-{config.model.width:g}"
    summary = {
        "dataset": dataset,
        "network": network,
        "weights": config.model.weights,
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": steps,
        "test": {k: v for k, v in tests[-1].items() if k not in ("kind", "step", "seconds", "cycle_end")},
        "test_error": tests[-1]["error"],
        "test_error_at_cycle_ends": {str(r["epoch"]): r["error"] for r in tests if r["cycle_end"]},
        "train_error": epochs[-1]["train_error"] if epochs else None,  # none where the log was lost
        "seconds": tests[-1]["seconds"],
        "images_per_s": statistics.median(rates) if rates else None,
        "devices": environment["devices"],
        "processes": environment["processes"],
        "processor": environment["processor"],
        "cores": environment["cores"],
        "commit": environment["commit"],
        **packed,
    }
    title = f"{dataset}, {network} {config.model.weights}, seed {config.seed}"
    try:
        draw_curves(workdir / "curves.png", records, f"{title}: test error {summary['test_error']:.2f} %")
    except UserError as missing:  # the package for plots
        logging.getLogger(__name__).info("%s", missing)
    replace_file(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
