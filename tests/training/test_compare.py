"""Runs beside each other, and the curves: what the table says, and what the figures draw."""

import json

import numpy as np
import pytest

from binwrn_jax import base_config, resolve
from binwrn_jax.cli.main import main
from binwrn_jax.data.catalog import lookup
from binwrn_jax.training import curves
from binwrn_jax.training.config import to_json


def record(kind, step, **values):
    return {"kind": kind, "step": step, "epoch": step / 10, "seconds": float(step), **values}


def make_run(folder, seed=0, error=5.0, finished=True, drop=()):
    folder.mkdir(parents=True)
    config = base_config()
    config.seed, config.epochs = seed, 6
    content = json.loads(to_json(config))
    for name in drop:
        del content[name]
    (folder / "config.json").write_text(json.dumps(content))
    test = {"error_low": error - 1, "error_high": error + 1, "loss": 0.5, "cycle_end": True}
    records = [
        record("train", 10, loss=1.0, learning_rate=0.1, images_per_s=None),
        record("train", 20, loss=0.7, learning_rate=0.01, images_per_s=9.0),
        record("epoch", 20, train_error=12.0),
        record("eval", 20, error=error, **test),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def test_table_of_two_runs(tmp_path, capsys):
    """One was written before a field existed; the names are as short as they can be."""
    one = make_run(tmp_path / "a" / "run", 1, 5.0, drop=("freeze",))
    two = make_run(tmp_path / "b" / "run", 2, 4.0, finished=False)
    png = tmp_path / "both.png"
    assert main(["compare", str(one), str(two), "--png", str(png)]) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert lines[1][:5] == ["a/run", "6", "5.00", "4.00", "to"]
    assert lines[2][:5] == ["b/run", "2", "of", "6", "4.00"]
    assert ["seed", "1", "2"] in lines and "freeze" not in output
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["compare", str(one), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == {"seed": [1, 2]}
    assert [run["finished"] for run in found["runs"]] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not the workdir of a run: it has no config.json"),
        (["run", "--png", "no/folder/x.png"], "cannot write no/folder/x.png"),
        (["run", "--png", "x.jpg"], "cannot write x.jpg: give a name that ends in .png"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, monkeypatch, arguments, message):
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_without_records(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    assert main(["compare", str(folder)]) == 0
    assert "-" in capsys.readouterr().out


def test_the_learning_rate_is_drawn_exactly_at_restarts():
    """Both sides of each restart are points of the curve: no ramp between the floor and the peak."""
    config = base_config()
    config.data.name, config.epochs = "digits", 62
    run = resolve(config, lookup("digits"))
    steps, rates = curves.rate_points(run.learning_rate, run.total_steps, sorted(run.cycle_ends))
    assert len(steps) < run.total_steps or run.total_steps <= curves.RATE_POINTS
    for restart in sorted(run.cycle_ends)[:-1]:
        before, after = (rates[np.flatnonzero(steps == s)[0]] for s in (restart - 1, restart))
        assert after == pytest.approx(0.1) and before < 0.002


def drawn(monkeypatch):
    """The figures that a function draws, kept instead of written."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_labels_stay_inside_the_axes(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    records = [
        record("eval", step, error=error, loss=0.5, cycle_end=True)
        for step, error in ((20, 90.0), (60, 30.0), (140, 12.0), (300, 10.0), (620, 89.0))
    ]
    curves.draw_curves(tmp_path / "curves.png", records, "title")
    (figure,) = figures
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    labels = [text for text in axis.texts if text.get_text()]
    assert len(labels) == 5
    box = axis.get_window_extent()
    for label in labels:
        extent = label.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1


def test_confusion_is_drawn_with_its_numbers(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    curves.draw_confusion(tmp_path / "x.png", np.array([[8, 2], [0, 10]]), ("cat", "dog"), "title")
    axis = figures[0].axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["10", "2", "8"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["cat", "dog"]
