"""The picture of a run: ``curves.png``."""

from __future__ import annotations

from pathlib import Path

from binwrn_jax.errors import require
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.records import Record


def draw_curves(path: Path, records: list[Record], title: str) -> None:
    """Writes ``curves.png``: error, loss and learning rate by epoch, cycle ends marked.

    Args:
      path: of the image.
      records: of a `MetricsLog`.
      title: above the plots.
    """
    canvas = require("matplotlib.backends.backend_agg", "drawing curves.png").FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [r for r in records if r["kind"] == "train"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    tests = [r for r in records if r["kind"] == "eval"]
    figure = Figure(figsize=(8, 9), layout="constrained")
    error, loss, rate = figure.subplots(3, 1, sharex=True)
    error.plot([r["epoch"] for r in epochs], [r["train_error"] for r in epochs], label="train (augmented)")
    error.plot([r["epoch"] for r in tests], [r["error"] for r in tests], "o-", color="tab:red", label="test")
    for record in tests:
        if record["cycle_end"]:
            for axis in (error, loss, rate):
                axis.axvline(record["epoch"], color="0.8", linewidth=1, zorder=0)
            error.annotate(
                f"{record['error']:.2f}",
                (record["epoch"], record["error"]),
                textcoords="offset points",
                xytext=(4, 6),
            )
    error.set_ylabel("error (%)")
    error.set_ylim(bottom=0)
    error.legend()
    loss.plot([r["epoch"] for r in train], [r["loss"] for r in train], linewidth=0.8, label="train")
    loss.plot([r["epoch"] for r in tests], [r["loss"] for r in tests], "o-", color="tab:red", label="test")
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_yscale("log")
    loss.legend()
    rate.plot([r["epoch"] for r in train], [r["learning_rate"] for r in train], color="tab:green")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch (grey lines: cycle ends)")
    figure.suptitle(title)
    replace_file(path, lambda temporary: canvas(figure).print_png(str(temporary)))
