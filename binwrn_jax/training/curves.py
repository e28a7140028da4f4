"""``curves.png``: error, loss and learning rate of a run by epoch; and those of several runs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32

from binwrn_jax.errors import require
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.records import Record

MOST_LABELS = 8  # numbers written beside points; more would overlap
RATE_POINTS = 2000  # of the curve of the learning rate, beside the restarts


def rate_points(
    learning_rate: Callable[[np.ndarray], Any], total_steps: int, restarts: Sequence[int]
) -> tuple[Int32[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
    """Steps and learning rates that draw the schedule as it is: both sides of each restart are among them.

    Args:
      learning_rate: int steps to rates.
      total_steps: steps of the run.
      restarts: steps at which the rate jumps.
    """
    steps = np.linspace(0, total_steps - 1, min(RATE_POINTS, total_steps))
    edges = [step for restart in restarts for step in (restart - 1, restart)]
    inside = [step for step in edges if 0 <= step < total_steps]
    points = np.unique(np.concatenate([np.round(steps), inside]).astype(np.int32))
    return points, np.asarray(learning_rate(points), np.float64)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG that is whole or absent."""
    canvas = require("matplotlib.backends.backend_agg", f"drawing {path.name}").FigureCanvasAgg
    replace_file(path, lambda temporary: canvas(figure).print_png(str(temporary)))


def _new_figure(path: Path, width: float, height: float) -> Any:
    return require("matplotlib.figure", f"drawing {path.name}").Figure(
        figsize=(width, height), layout="constrained"
    )


def draw_curves(
    path: Path, records: list[Record], title: str, rate: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Writes ``curves.png``: error, loss and learning rate by epoch, cycle ends marked.

    Args:
      path: of the image.
      records: of a `binwrn_jax.training.records.MetricsLog`.
      title: above the plots.
      rate: epochs and learning rates; where None those of the records, which are averages around a restart.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure = _new_figure(path, 8, 9)
    train = [r for r in records if r["kind"] == "train"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    tests = [r for r in records if r["kind"] == "eval"]
    error, loss, rates = figure.subplots(3, 1, sharex=True)
    error.plot([r["epoch"] for r in epochs], [r["train_error"] for r in epochs], label="train (augmented)")
    error.plot([r["epoch"] for r in tests], [r["error"] for r in tests], "o-", color="tab:red", label="test")
    ends = [record for record in tests if record["cycle_end"]]
    for record in ends:
        for axis in (error, loss, rates):
            axis.axvline(record["epoch"], color="0.8", linewidth=1, zorder=0)
    error.set_ylabel("error (%)")
    error.set_ylim(bottom=0)
    error.margins(x=0.02)
    _label(error, [(r["epoch"], r["error"]) for r in ends[-MOST_LABELS:]])
    error.legend()
    loss.plot([r["epoch"] for r in train], [r["loss"] for r in train], linewidth=0.8, label="train")
    loss.plot([r["epoch"] for r in tests], [r["loss"] for r in tests], "o-", color="tab:red", label="test")
    loss.set_ylabel("cross-entropy (nats)")
    _scale_by_powers(loss)
    loss.legend()
    where = rate or ([r["epoch"] for r in train], [r["learning_rate"] for r in train])
    rates.plot(*where, color="tab:green", linewidth=1)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch (grey lines: cycle ends)")
    figure.suptitle(title)
    save_figure(figure, path)


def _label(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    """Writes the second number of each point beside it, always within the axes."""
    left, right = axis.get_xlim()
    top = axis.get_ylim()[1]
    for x, y in points:
        beyond = (x - left) / (right - left) > 0.9
        high = y / top > 0.9 if top else False
        axis.annotate(
            f"{y:.2f}",
            (x, y),
            textcoords="offset points",
            xytext=(-4 if beyond else 4, -12 if high else 6),
            ha="right" if beyond else "left",
            annotation_clip=True,
        )


def draw_comparison(path: Path, runs: Mapping[str, list[Record]]) -> None:
    """Writes a PNG with the test errors and losses of several runs by epoch in one picture.

    Args:
      path: of the image.
      runs: records by the name that the legend shows.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure = _new_figure(path, 8, 7)
    error, loss = figure.subplots(2, 1, sharex=True)
    for name, records in runs.items():
        tests = [r for r in records if r["kind"] == "eval"]
        train = [r for r in records if r["kind"] == "train"]
        (line,) = error.plot([r["epoch"] for r in tests], [r["error"] for r in tests], "o-", label=name)
        loss.plot(
            [r["epoch"] for r in train], [r["loss"] for r in train], linewidth=0.8, color=line.get_color()
        )
    error.set_ylabel("test error (%)")
    error.set_ylim(bottom=0)
    error.legend()
    loss.set_ylabel("training loss (nats)")
    _scale_by_powers(loss)
    loss.set_xlabel("epoch")
    save_figure(figure, path)


def _scale_by_powers(axis: Any) -> None:
    """A logarithmic scale, where there is a positive value to show."""
    if any((np.asarray(line.get_ydata(), np.float64) > 0).any() for line in axis.lines):
        axis.set_yscale("log")


def draw_confusion(
    path: Path, matrix: Int[np.ndarray, "classes classes"], class_names: Sequence[str], title: str
) -> None:
    """Writes a PNG of a confusion matrix, each row as shares of its class.

    Args:
      path: of the image.
      matrix: int ``[classes, classes]``, see `binwrn_jax.evaluation.confusion_matrix`.
      class_names: one for each class, or none.
      title: above the plot.

    Raises:
      UserError: matplotlib is not installed.
    """
    classes = len(matrix)
    side = min(max(4.0, 0.45 * classes + 2), 20.0)
    figure = _new_figure(path, side, side)
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= 40:
        names = list(class_names) or [str(index) for index in range(classes)]
        shown = [name if len(name) <= 16 else f"{name[:15]}..." for name in names]
        axis.set_xticks(range(classes), shown, rotation=90)
        axis.set_yticks(range(classes), shown)
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(matrix[row, column])
            axis.text(column, row, number, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    figure.suptitle(title)
    save_figure(figure, path)
