"""Metric sums and what is divided out of them, against NumPy written example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from binwrn_jax import cross_entropy, evaluate, metric_sums
from binwrn_jax.evaluation import (
    average_crops,
    class_errors,
    confusion_matrix,
    fit_temperature,
    probabilities,
    summarise,
    wilson,
)

ours = jax.jit(metric_sums)


def expected_sums(logits, labels, mask):
    """One example at a time, in float64."""
    n = correct = top5 = 0
    loss = 0.0
    bins = [[] for _ in range(15)]
    for z, label, counts in zip(logits.astype(np.float64), labels, mask, strict=True):
        if not counts:
            continue
        n += 1
        ranking = sorted(range(len(z)), key=lambda c: (-z[c], c))
        hit = ranking[0] == label
        correct += hit
        top5 += label in ranking[:5]
        p = np.exp(z - z.max())
        p /= p.sum()
        loss -= np.log(p[label])
        bins[min(int(np.ceil(p.max() * 15)) - 1, 14)].append((hit, p.max()))
    return {
        "n": n,
        "correct": correct,
        "top5_correct": top5,
        "loss": loss,
        "bin_n": [len(b) for b in bins],
        "bin_correct": [sum(hit for hit, _ in b) for b in bins],
        "bin_confidence": [sum(p for _, p in b) for b in bins],
    }


def check(sums, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert {name: v.dtype.name for name, v in sums.items() if v.dtype != jnp.int32} == {
        "loss": "float32",
        "bin_confidence": "float32",
    }


@pytest.mark.parametrize("classes", [3, 10])
def test_sums(classes):
    rng = np.random.default_rng(classes)
    logits = (rng.normal(size=(200, classes)) * 2).astype(np.float32)
    labels = rng.integers(0, classes, 200).astype(np.int32)
    mask = rng.random(200) < 0.8
    sums = ours(logits, labels, mask)
    check(sums, expected_sums(logits, labels, mask))
    if classes < 5:
        assert int(sums["top5_correct"]) == int(sums["n"])


def test_ties_go_to_the_lower_class_as_in_argmax():
    logits = np.random.default_rng(0).integers(0, 3, (300, 8)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 8, 300).astype(np.int32)
    mask = np.ones(300, bool)
    sums = ours(logits, labels, mask)
    check(sums, expected_sums(logits, labels, mask))
    assert int(sums["correct"]) == (logits.argmax(1) == labels).sum()
    constant = ours(np.zeros((8, 8), np.float32), np.arange(8, dtype=np.int32), np.ones(8, bool))
    assert int(constant["correct"]) == 1 and int(constant["top5_correct"]) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_wrong(bad):
    logits = np.zeros((4, 10), np.float32)
    logits[:, 0] = 5
    logits[1] = bad
    logits[2, 7] = bad
    sums = ours(logits, np.zeros(4, np.int32), np.ones(4, bool))
    assert (int(sums["n"]), int(sums["correct"]), int(sums["top5_correct"])) == (4, 2, 2)


@pytest.mark.parametrize("label", [3, 4, -1, -3])
def test_labels_outside_the_classes_are_wrong(label):
    """Also where all logits are equal, or the class that an index from the end would mean has the largest."""
    for logits in np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]], np.float32):
        sums = ours(logits[None], np.array([label], np.int32), np.ones(1, bool))
        assert (int(sums["n"]), int(sums["correct"]), int(sums["top5_correct"])) == (1, 0, 0)


def test_masked_examples_change_nothing():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(9, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 9).astype(np.int32)
    whole = ours(logits, labels, np.ones(9, bool))
    padded_logits = np.concatenate([logits, np.full((7, 4), np.nan, np.float32)])
    padded_labels = np.concatenate([labels, np.zeros(7, np.int32)])
    padded = ours(padded_logits, padded_labels, np.arange(16) < 9)
    for name in whole:
        np.testing.assert_allclose(padded[name], whole[name], rtol=1e-6, err_msg=name)


def test_cross_entropy_of_large_and_of_half_precision_logits():
    logits = jnp.array([[1000.0, 0.0, -1000.0], [0.0, 1000.0, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0, 0])), [0.0, 1000.0])
    half = cross_entropy(jnp.zeros((1, 4), jnp.bfloat16), jnp.array([2]))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, np.log(4), rtol=1e-6)


def test_evaluation_over_batches_is_exact():
    """Batches of 7 over 100 examples, the last padded: the same as all at once, and as NumPy."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(100, 10)) * 3).astype(np.float32)
    labels = np.where(rng.random(100) < 0.6, logits.argmax(1), rng.integers(0, 10, 100)).astype(np.int32)

    def batches(size):
        for start in range(0, 100, size):
            rows = np.arange(start, start + size)
            yield {"images": logits[rows % 100], "labels": labels[rows % 100], "mask": rows < 100}

    step = jax.jit(lambda scale, b: metric_sums(b["images"] * scale, b["labels"], b["mask"]))
    result = evaluate(step, jnp.float32(1), batches(7))
    whole = expected_sums(logits, labels, np.ones(100, bool))
    assert (result["n"], result["correct"]) == (100, whole["correct"])
    assert result["error"] == pytest.approx(100 - whole["correct"])
    assert result["top5_error"] == pytest.approx(100 - whole["top5_correct"])
    assert result["loss"] == pytest.approx(whole["loss"] / 100, rel=1e-5)
    gaps = np.abs(np.array(whole["bin_correct"]) - whole["bin_confidence"])
    assert result["ece"] == pytest.approx(gaps.sum(), rel=1e-4) and result["ece"] > 1
    assert result["error_low"] < result["error"] < result["error_high"]
    with pytest.raises(ValueError, match="no batches"):
        evaluate(step, jnp.float32(1), [])


def test_calibrated_predictions_have_no_calibration_error():
    """Four confidences whose share of hits is what they say."""
    sums = {
        "n": np.int32(40),
        "correct": np.int32(20),
        "top5_correct": np.int32(40),
        "loss": np.float32(1),
        "bin_n": np.eye(15)[2] * 10 + np.eye(15)[12] * 30,
        "bin_correct": np.eye(15)[2] * 2 + np.eye(15)[12] * 18,
        "bin_confidence": np.eye(15)[2] * 2.0 + np.eye(15)[12] * 25.5,
    }
    sums = {name: np.asarray(value) for name, value in sums.items()}
    assert summarise(sums)["ece"] == pytest.approx(100 * 7.5 / 40)
    sums["bin_correct"] = sums["bin_confidence"]
    assert summarise(sums)["ece"] == 0


@pytest.mark.parametrize(("hits", "n"), [(375, 10000), (0, 360), (360, 360), (1, 3)])
def test_wilson_interval(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(hits, n), (expected.low, expected.high), rtol=1e-5, atol=1e-9)


def test_average_of_crops_is_that_of_the_softmax():
    logits = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64))
    expected = (powers / powers.sum(1, keepdims=True)).reshape(2, 3, 4).mean(1)
    averaged = np.asarray(average_crops(jnp.asarray(logits), 3))
    np.testing.assert_allclose(np.exp(averaged), expected, rtol=1e-5)
    # Softmax of logits that overflow exp in float32.
    large = np.asarray(average_crops(jnp.asarray(100 * logits), 3))
    assert np.isfinite(large).all()


def test_confusion_and_errors_of_each_class():
    logits = np.eye(3)[[0, 1, 1, 1, 0, 0]]
    matrix = confusion_matrix(logits, np.array([0, 0, 0, 1, 1, 0]))
    assert matrix.tolist() == [[2, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert class_errors(matrix) == [
        {"n": 4, "error": 50.0, "mistaken_for": 1, "mistakes": 2},
        {"n": 2, "error": 50.0, "mistaken_for": 0, "mistakes": 1},
        {"n": 0, "error": None, "mistaken_for": None, "mistakes": 0},
    ]


def test_temperature_undoes_a_scale_and_leaves_predictions():
    """Labels drawn from the softmax of logits, which then are multiplied by 5: the temperature is 5 again."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    powers = np.exp(logits)
    cumulative = (powers / powers.sum(1, keepdims=True)).cumsum(1)
    labels = (rng.random((20_000, 1)) > cumulative).sum(1)
    temperature = fit_temperature(5 * logits, labels)
    assert temperature == pytest.approx(5, rel=0.03)

    found = scipy.optimize.minimize_scalar(
        lambda t: -scipy.special.log_softmax(5 * logits / t, axis=1)[np.arange(20_000), labels].mean(),
        bounds=(0.1, 50), method="bounded",
    )  # fmt: skip
    assert temperature == pytest.approx(found.x, rel=1e-3)
    calibrated = probabilities(5 * logits, {"temperature": temperature})
    np.testing.assert_array_equal(calibrated.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(calibrated.sum(1), 1)
    np.testing.assert_allclose(probabilities(logits, {}), powers / powers.sum(1, keepdims=True))
