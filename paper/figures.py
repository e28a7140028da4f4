"""The paper's figures 1, 5, 6 and 7: its own points where they are known, and ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binwrn_jax.training.schedules import cycle_ends
from paper import experiments
from paper.experiments import EXPERIMENTS, Comparison, Experiment
from paper.runs import Run, collect_measurements, covers
from paper.statistics import Difference
from paper.tables import CYCLE_ENDS, RELEASED_CURVES

CAPTIONS = {
    "fig1": "Fig. 1: the gap between 1-bit and 32-bit test error against 32-bit test error",
    "fig5": "Fig. 5: test error at each cycle's end",
    "fig6": "Fig. 6: warm restarts and batch-norm learning, off and on (CIFAR-100, 20-4: our choice)",
    "fig7": "Fig. 7: residual networks and plain ones (CIFAR-10 and CIFAR-100, 20-4: our choice)",
}
# Of the networks of each scale.
ENDS = {"full": CYCLE_ENDS, "cpu": cycle_ends(experiments.CPU_EPOCHS)}
PAPER_COLOUR = "0.55"
# Okabe and Ito's: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")


def draw_all(output: Path, runs: Sequence[Run], differences: Mapping[Comparison, Difference | None]) -> None:
    """Writes each figure as PNG and SVG."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "binwrn", "axes.grid": True, "grid.color": "0.92"}):
        _save(output / "fig1", _gap_figure(runs, differences))
        _save(output / "fig5", _cycles_figure(runs))
        _save(output / "fig6", _ablation_figure(runs))
        _save(output / "fig7", _plain_figure(runs))


def curve(experiment: Experiment, runs: Sequence[Run]) -> list[tuple[int, float, float]]:
    """``(epoch, mean, standard deviation)`` of test error at cycle ends, over the seeds that came so far."""
    last = experiment.config().epochs
    values: dict[int, dict[int, float]] = {}
    for run in runs:
        if covers(run, experiment):
            for epoch, record in run.evaluations().items():
                if epoch <= last:
                    values.setdefault(epoch, {})[run.seed] = record["error"]
    points = []
    for epoch, by_seed in sorted(values.items()):
        errors = list(by_seed.values())
        points.append((epoch, statistics.fmean(errors), statistics.stdev(errors) if len(errors) > 1 else 0.0))
    return points


def _figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(path: Path, figure: Any) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _finish(axis: Any, title: str, drawn: bool, epochs: Sequence[int] = ()) -> None:
    """Labels of an axis of error against epoch; an empty one says so."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.set_ylabel("test error (%)")
    if epochs:
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(epochs), [str(epoch) for epoch in epochs])
        axis.minorticks_off()
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)
    else:
        axis.set_yticks([])
    if not drawn:
        _say_not_run(axis)


def _say_not_run(axis: Any) -> None:
    axis.text(0.04, 0.05, "ours: not run", transform=axis.transAxes, color="0.4")


def _draw(axis: Any, one: Experiment, runs: Sequence[Run], label: str, **style: Any) -> bool:
    points = curve(one, runs)
    if points:
        epochs, means, sds = zip(*points, strict=True)
        axis.errorbar(epochs, means, yerr=sds, label=label, capsize=2, linewidth=1.2, markersize=4, **style)
    return bool(points)


def _gap_figure(runs: Sequence[Run], differences: Mapping[Comparison, Difference | None]) -> Any:
    figure, axes = _figure(2)
    for axis, scale in zip(axes[0], experiments.SCALES, strict=True):
        colours = iter(COLOURS[1:] + COLOURS[:1])
        for comparison, found in differences.items():
            one_bit, full = EXPERIMENTS[comparison.worse], EXPERIMENTS[comparison.better]
            if comparison.tag != "fig1" or one_bit.scale != scale:
                continue
            if "error" in one_bit.paper and "error" in full.paper:
                gap = one_bit.paper["error"] - full.paper["error"]
                axis.plot(full.paper["error"], gap, "s", color=PAPER_COLOUR, markersize=5)
            if found is not None:
                half = (found.high - found.mean) if found.high is not None else 0.0
                x = statistics.fmean(collect_measurements(full, runs)[0].by_seed().values())
                label = f"ours: {comparison.better.replace('-32bit', '')}"
                colour = next(colours)
                axis.errorbar(
                    x, found.mean, yerr=half, fmt="o", color=colour, capsize=3, markersize=5, label=label
                )
        if scale == "full":
            axis.plot([], [], "s", color=PAPER_COLOUR, label="paper, Tables 1 and 2, MNIST")
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_xlabel("32-bit test error (%)")
        axis.set_ylabel("1-bit minus 32-bit (percentage points)")
        title = "the paper's networks" if scale == "full" else "CPU scale, 95 % interval over seeds"
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.12, y=0.15)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc="upper left")
        else:
            _say_not_run(axis)
    return figure


def _cycles_figure(runs: Sequence[Run]) -> Any:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = _figure(2)
    full, small = axes[0]
    for name, errors in RELEASED_CURVES.items():
        style = "--" if name.startswith("c100") else "-"
        full.plot(
            CYCLE_ENDS, errors, style, marker="s", markersize=4, color=PAPER_COLOUR, label=f"author: {name}"
        )
    table = [e for e in EXPERIMENTS.values() if "table1" in e.tags]
    ends = [e.config().epochs for e in table], [e.paper["error"] for e in table]
    full.plot(*ends, "x", color=PAPER_COLOUR, markersize=5, label="paper, Table 1")
    for axis, scale in ((full, "full"), (small, "cpu")):
        drawn = False
        colours: dict[str, str] = {}  # by what is trained, whatever its weights
        for one in EXPERIMENTS.values():
            if one.scale == scale and "fig5" in one.tags and curve(one, runs):
                style = "s--" if "-32bit" in one.name else "o-"
                pair = one.name.replace("-32bit", "").replace("-1bit", "")
                colour = colours.setdefault(pair, COLOURS[len(colours) % len(COLOURS)])
                drawn |= _draw(axis, one, runs, one.name, fmt=style, color=colour)
        _finish(axis, "the paper's networks" if scale == "full" else "CPU scale", drawn, ENDS[scale])
        axis.set_yscale("log")
        axis.set_yticks([0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 70])
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.autoscale(axis="y")
        if axis.get_legend():  # below: the curves leave no room
            axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def _ablation_figure(runs: Sequence[Run]) -> Any:
    arms = {
        "": "restarts, BN fixed",
        "-learnbn": "restarts, BN learned",
        "-step": "steps, BN fixed",
        "-step-learnbn": "steps, BN learned",
    }
    settings = [
        (pattern, f"{title}, {weights}", weights, None)
        for pattern, title in (
            ("c100-{}-20-4{}-254epochs", "CIFAR-100, 20-4"), ("c10-{}{}", "CIFAR-10, CPU scale"),
        )
        for weights in ("32bit", "1bit")
    ]  # fmt: skip
    lines = [
        (words, label, "s--" if "step" in words else "o-", colour)
        for (words, label), colour in zip(arms.items(), COLOURS, strict=False)
    ]
    return _panels(
        runs,
        [
            (title, epochs, [(pattern.format(weights, words), *rest) for words, *rest in lines])
            for pattern, title, weights, epochs in settings
        ],
    )


def _plain_figure(runs: Sequence[Run]) -> Any:
    settings = (
        ("c10-{}-20-4{}", "CIFAR-10, 20-4", ENDS["full"][:-1]),
        ("c100-{}-20-4{}", "CIFAR-100, 20-4", ENDS["full"][:-1]),
        ("c10-{}{}", "CIFAR-10, CPU scale", ENDS["cpu"]),
    )
    lines = [
        (weights, words, f"{weights}, {'plain' if words else 'residual'}", style, colour)
        for weights, colour in (("32bit", COLOURS[0]), ("1bit", COLOURS[1]))
        for words, style in (("", "o-"), ("-plain", "s--"))
    ]
    return _panels(
        runs,
        [
            (title, epochs, [(pattern.format(weights, words), *rest) for weights, words, *rest in lines])
            for pattern, title, epochs in settings
        ],
    )


def _panels(runs: Sequence[Run], settings: Sequence[tuple[str, Any, Sequence[Any]]]) -> Any:
    """One panel for each setting of which something has been run, two to a row.

    Args:
      runs: of any experiments.
      settings: title, epochs to mark on the axis or None, and lines: name of the experiment, label, style,
        colour.
    """
    drawn = [s for s in settings if any(curve(EXPERIMENTS[line[0]], runs) for line in s[2])] or settings[-1:]
    columns = min(len(drawn), 2)
    figure, axes = _figure(columns, -(-len(drawn) // columns))
    for axis, (title, epochs, lines) in zip(axes.flat, drawn, strict=False):
        found = False
        for name, label, style, colour in lines:
            one = EXPERIMENTS[name]
            if "error" in one.paper:
                place = one.config().epochs, one.paper["error"]
                axis.plot(*place, style[0], color=PAPER_COLOUR, label=f"paper: {label}")
            found |= _draw(axis, one, runs, label, fmt=style, color=colour)
        _finish(axis, title, found, epochs or ())
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    return figure
