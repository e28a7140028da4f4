"""``binwrn evaluate`` and ``binwrn inspect``: exact numbers by an independent formula, and refusals."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from binwrn_jax import Description, Model, UserError, base_config, load
from binwrn_jax.cli.main import main
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.nn.registry import create_network

DIGITS = (8, 8, 1)


def make_model(folder, *, weights="1bit", classes=10, shape=DIGITS, seed=0):
    """A random network whose moments fit 8-bit images, as a model folder."""
    fields = {**base_config().model.to_dict(), "depth": 8, "width": 0.5, "weights": weights}
    model = create_network(fields, classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.uint8))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    for name, moments in variables["batch_stats"].items():
        moments["var"] = np.full_like(moments["var"], 4000 if name == "bn0" else 1)
    Model(model, variables, Description(classes, shape, fields, "digits")).save(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "one_bit")


def run_json(capsys, *arguments):
    """The object that a verb prints with --json; stdout may hold nothing else."""
    assert main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("}\n") and out.count("\n") == 1
    return json.loads(out)


def refused(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_the_numbers_are_exact(capsys, tmp_path, model):
    """Against NumPy in float64, from the logits that it writes; 360 images do not fill batches of 50."""
    file = tmp_path / "predictions.npz"
    result = run_json(
        capsys, "evaluate", model, "--dataset", "digits", "--batch-size", 50, "--predictions", file
    )
    data = load("digits", "test")
    with np.load(file) as saved:
        logits, predictions, labels = (saved[key] for key in ("logits", "predictions", "labels"))
    np.testing.assert_array_equal(labels, data.labels)
    assert logits.shape == (360, 10) and logits.dtype == np.float32
    np.testing.assert_array_equal(predictions, logits.argmax(1))

    logits = logits.astype(np.float64)
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    own = probability[np.arange(360), labels]
    rank = (probability > own[:, None]).sum(1)
    confidence, correct = probability.max(1), predictions == labels
    bins = np.ceil(confidence * 15)
    ece = sum(abs((correct[bins == b] * 1.0 - confidence[bins == b]).sum()) for b in range(16)) / 360
    assert (result["dataset"], result["split"], result["n"]) == ("digits", "test", 360)
    assert result["correct"] == correct.sum()
    assert result["error"] == pytest.approx(100 * (1 - correct.mean()))
    assert result["top5_error"] == pytest.approx(100 * (rank >= 5).mean())
    assert result["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert result["ece"] == pytest.approx(100 * ece, rel=1e-4)
    assert result["error_low"] < result["error"] < result["error_high"]
    assert result["images_per_s"] > 0 and result["seconds"] > 0


def test_batches_change_nothing(capsys, model):
    results = [
        run_json(capsys, "evaluate", model, "--dataset", "digits", "--batch-size", size) for size in (360, 77)
    ]
    for key in ("n", "correct", "error", "top5_error"):
        assert results[0][key] == results[1][key]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-6)


def test_limit_and_split(capsys, model):
    both = [
        run_json(capsys, "evaluate", model, "--dataset", "digits", "--limit", 30),
        run_json(capsys, "evaluate", model, "--dataset", "digits", "--split", "test[:30]"),
    ]
    assert [result["n"] for result in both] == [30, 30]
    assert both[0]["correct"] == both[1]["correct"]
    assert [result["split"] for result in both] == ["test", "test[:30]"]


def test_for_people(capsys, model):
    assert main(["evaluate", str(model), "--dataset", "digits", "--limit", "60"]) == 0
    out = capsys.readouterr().out
    assert "60/60 images" in out  # progress
    assert "digits test, 60 images: error " in out and "95 % interval" in out and "images/s" in out


def test_bfloat16_on_request(model):
    images = load("digits", "test").images[:64]
    exact, rounded = open_model(model)(images), open_model(model, dtype="bfloat16")(images)
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.1 * np.abs(exact).max())


def test_any_number_of_images(model):
    predictor = open_model(model, batch_size=32)
    images = load("digits", "test").images[:75]
    whole = predictor(images)
    for count in (0, 1, 3, 32, 33):
        logits = predictor(images[:count])
        assert logits.shape == (count, 10) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, whole[:count], rtol=1e-5, atol=1e-5)


def test_wrong_data_and_options_are_refused(capsys, tmp_path, model):
    evaluate = ("evaluate", model, "--dataset")
    assert "unknown data set 'digit' (nearest: digits)" in refused(capsys, *evaluate, "digit")
    assert "(8, 8, 1) and mnist has (28, 28, 1)" in refused(capsys, *evaluate, "mnist")
    assert "no split 'tset'" in refused(capsys, *evaluate, "digits", "--split", "tset")
    assert "limit must be at least 1" in refused(capsys, *evaluate, "digits", "--limit", 0)
    assert "must be at least 1" in refused(capsys, *evaluate, "digits", "--batch-size", 0)
    assert "no such folder" in refused(
        capsys, *evaluate, "digits", "--predictions", tmp_path / "no" / "f.npz"
    )
    assert "packed files only" in refused(capsys, *evaluate, "digits", "--runtime", "numpy")
    seven = make_model(tmp_path / "seven", classes=7)
    assert "7 classes and digits 10" in refused(capsys, "evaluate", seven, "--dataset", "digits")
    nothing = tmp_path / "nothing"
    assert "no model at" in refused(capsys, "evaluate", nothing, "--dataset", "digits")
    nothing.write_text("some text\n")
    assert "is no model" in refused(capsys, "evaluate", nothing, "--dataset", "digits")
    nothing.write_bytes(b"MATLAB 5.0 MAT-file".ljust(128))
    assert "binwrn import" in refused(capsys, "evaluate", nothing, "--dataset", "digits")
    with pytest.raises(UserError, match="unknown runtime 'onnx'"):
        open_model(model, runtime="onnx")


def test_inspect_one_bit(capsys, model):
    result = run_json(capsys, "inspect", model)
    rows = result["layers"]
    assert [row["name"] for row in rows] == [f"conv{i}" for i in range(8)]
    assert rows[0]["shape"] == [3, 3, 1, 8] and rows[-1]["shape"] == [1, 1, 32, 10]
    assert rows[0]["scale"] == pytest.approx(np.sqrt(2 / 9))
    assert {row["values"] for row in rows} == {2}
    assert all(0.3 < row["plus_share"] < 0.7 for row in rows)
    weights = sum(int(np.prod(row["shape"])) for row in rows)
    assert result["total"]["weights"] == result["total"]["bits"] == weights
    assert rows[0]["bytes"] == 9  # 72 weights
    assert result["more_than_two_values"] == []
    assert main(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    assert "at most two values" in out and f"{weights:,} weights, {weights:,} bits" in out


def test_inspect_tells_that_weights_are_not_one_bit(capsys, tmp_path):
    full = make_model(tmp_path / "full", weights="32bit")
    result = run_json(capsys, "inspect", full)
    assert len(result["more_than_two_values"]) == 8
    assert result["total"]["bits"] == 32 * result["total"]["weights"]
    assert result["layers"][1]["values"] > 500 and result["layers"][1]["plus_share"] is None
    assert main(["inspect", str(full)]) == 0
    assert "more than two values: conv0, conv1" in capsys.readouterr().out
    layer = make_model(tmp_path / "layer", weights="bwn_layer")
    assert run_json(capsys, "inspect", layer)["more_than_two_values"] == []


def test_errors_of_each_class_and_their_picture(capsys, tmp_path, model):
    picture, file = tmp_path / "confusion.png", tmp_path / "predictions.npz"
    options = ["--per-class", "--confusion", picture, "--predictions", file]
    result = run_json(capsys, "evaluate", model, "--dataset", "digits", *options)
    with np.load(file) as saved:
        predictions, labels = saved["predictions"], saved["labels"]
    for index, row in enumerate(result["classes"]):
        mine = predictions[labels == index]
        assert row["name"] == str(index) and row["n"] == len(mine)
        assert row["error"] == pytest.approx(100 * (mine != index).mean())
        wrong = mine[mine != index]
        assert row["mistakes"] == (np.bincount(wrong).max() if len(wrong) else 0)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["evaluate", str(model), "--dataset", "digits", "--per-class", "--limit", "50"]) == 0
    assert "  3: " in capsys.readouterr().out
    (tmp_path / "mine.png").write_text("notes")
    assert "is no PNG image" in refused(
        capsys, "evaluate", model, "--dataset", "digits", "--confusion", tmp_path / "mine.png"
    )
    assert (tmp_path / "mine.png").read_text() == "notes"
