"""Exact evaluation: every image counts once, sums on the device, divisions on the host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from binwrn_jax.data.arrays import check_arrays, check_labels
from binwrn_jax.data.batch import Inputs, fetch
from binwrn_jax.data.dataset import Arrays
from binwrn_jax.errors import UserError

ECE_BINS = 15
BATCH_SIZE = 100

Sums = dict[str, jax.Array]


@runtime_checkable
class Predictor(Protocol):
    """Anything that turns images into logits.

    Attributes:
      description: at least ``num_classes``, ``image_shape`` ``[H, W, C]``, ``class_names`` (may be
        empty) and ``dataset`` (None where unknown).
    """

    description: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, C]``, values 0..255 and any N, to float32 logits ``[N, num_classes]``."""
        ...


@runtime_checkable
class Images(Protocol):
    """Labelled images in order, of any source: `ArrayImages` or `binwrn_jax.data.streamed.StreamedImages`."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """At most ``batch_size`` images at a time, uint8 ``[B, H, W, C]`` or, with several crops of each,
        ``[B, crops, H, W, C]``, and their labels int32 ``[B]``."""
        ...


class ArrayImages:
    """`Images` in memory."""

    def __init__(self, data: Arrays) -> None:
        """Checks the arrays, see `binwrn_jax.data.arrays.check_arrays`."""
        images, labels = check_arrays(data.images, data.labels, len(data.class_names))
        self._data = data._replace(images=images, labels=labels)

    def __len__(self) -> int:
        return len(self._data.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Images`."""
        for start in range(0, len(self), batch_size):
            yield self._data.images[start : start + batch_size], self._data.labels[start : start + batch_size]


def cross_entropy(logits: Float[Array, "N classes"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Softmax cross-entropy of each example in nats, float32 ``[N]``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def average_crops(logits: Float[Array, "rows classes"], crops: int) -> Float[Array, "N classes"]:
    """Logarithm of the softmax averaged over the crops of each image (section 3.3).

    Args:
      logits: ``[N * crops, classes]``, the crops of an image one after the other.
      crops: of each image.

    Returns:
      float32 ``[N, classes]``, logits of the average: their softmax is the average.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(-1, crops, logits.shape[-1])
    return jax.nn.logsumexp(logs, axis=1) - jnp.log(float(crops))


def metric_sums(logits: Float[Array, "N classes"], labels: Int[Array, " N"], mask: Bool[Array, " N"]) -> Sums:
    """Sums over the examples where ``mask`` is True, to be added over batches and divided on the host.

    Args:
      logits: ``[N, classes]``.
      labels: ``[N]``, in [0, classes); an example with another label counts as wrong, with a loss of NaN.
      mask: ``[N]``, False at the padding of a last batch.

    Returns:
      ``n``, ``correct``, ``top5_correct``: int32 scalars. An example is correct if no class has a
      larger logit than its own, ties broken towards the lower index, as argmax does. ``loss``:
      float32 sum in nats. ``bin_n``, ``bin_correct`` (int32) and ``bin_confidence`` (float32), each
      ``[15]``: calibration by equal bins of the largest softmax value (Guo et al. 2017).
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = (logits > own) | ((logits == own) & (jnp.arange(classes)[None, :] < labels[:, None]))
    # A NaN compares False with everything and would count as correct: such logits are all wrong. So is what
    # has a label outside the classes, for which `take_along_axis` gives another class's logit or NaN.
    finite = jnp.isfinite(logits).all(-1)
    inside = (labels >= 0) & (labels < classes)
    rank = jnp.where(finite & inside, before.sum(-1), max(classes, 5))
    correct = (rank == 0) & mask
    confidence = jnp.where(mask & finite, jax.nn.softmax(logits).max(-1), 0.0)
    bins = jnp.clip(jnp.ceil(confidence * ECE_BINS).astype(jnp.int32) - 1, 0, ECE_BINS - 1)

    def by_bin(values: jax.Array) -> jax.Array:
        return jnp.zeros(ECE_BINS, values.dtype).at[bins].add(values)

    return {
        "n": mask.sum(dtype=jnp.int32),
        "correct": correct.sum(dtype=jnp.int32),
        "top5_correct": ((rank < 5) & mask).sum(dtype=jnp.int32),
        "loss": jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        "bin_n": by_bin(mask.astype(jnp.int32)),
        "bin_correct": by_bin(correct.astype(jnp.int32)),
        "bin_confidence": by_bin(confidence),
    }


def make_eval_step(network: Any) -> Callable[[Any, Inputs], Sums]:
    """The evaluation step ``(variables, inputs) -> sums``, see `binwrn_jax.evaluation.metric_sums`.

    ``inputs`` as `fetch` takes them, and ``mask`` bool ``[B]``, False at padding; images may have several
    crops, uint8 ``[B, crops, H, W, C]``, over which the softmax is averaged (section 3.3). ``network`` is
    one of `binwrn_jax.nn`, or what `binwrn_jax.load_packed` gives, with its ``weights`` as variables.
    """

    def eval_step(variables: Any, inputs: Inputs) -> Sums:
        images, labels = fetch(inputs)
        crops = images.shape[1] if images.ndim == 5 else 1
        logits: Any = network.apply(variables, images.reshape(-1, *images.shape[-3:]), train=False)
        if crops > 1:
            logits = average_crops(logits, crops)
        return metric_sums(logits, labels, inputs["mask"])

    return eval_step


def make_logits_step(network: Any) -> Callable[[Any, Inputs], tuple[jax.Array, jax.Array, jax.Array]]:
    """The step ``(variables, inputs) -> (logits, labels, mask)`` of inputs as `make_eval_step` has them."""

    def logits_step(variables: Any, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        images, labels = fetch(inputs)
        return network.apply(variables, images, train=False), labels, inputs["mask"]

    return logits_step


def evaluate(
    eval_step: Callable[[Any, Inputs], Sums],
    variables: Any,
    batches: Iterable[Inputs],
    progress: Callable[[int], None] = lambda batches_done: None,
) -> dict[str, float]:
    """Runs the evaluation step over all batches and divides.

    Args:
      eval_step: jitted result of `binwrn_jax.evaluation.make_eval_step`.
      variables: ``params`` and ``batch_stats``.
      batches: see `binwrn_jax.data.on_device.DeviceData.in_order`.
      progress: called with the number of batches started.

    Returns:
      See `summarise`.
    """
    total: Sums | None = None
    for done, inputs in enumerate(batches, start=1):
        sums = eval_step(variables, inputs)
        total = sums if total is None else _add(total, sums)
        progress(done)
    if total is None:
        raise ValueError("no batches to evaluate")
    return summarise(jax.device_get(total))


@jax.jit
def _add(total: Sums, sums: Sums) -> Sums:
    return jax.tree.map(jnp.add, total, sums)


def measure(
    predictor: Predictor,
    data: Images,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The exact error of a model on a data set, by the same sums for every runtime.

    Args:
      predictor: see `open_model`.
      data: images and labels of the model's shape and classes. Over several crops of an image the softmax is
        averaged (section 3.3); its logits are those of the average.
      batch_size: images per call of the predictor, fewer where they have several crops.
      progress: gets a line after each batch.

    Returns:
      ``(result, logits, labels)``: the result of `binwrn_jax.evaluation.summarise`, with ``seconds`` for all
      and ``images_per_s`` of the whole batches after the first one, which compiles (of all where there is no
      other); logits float32 ``[N, classes]``; labels int32 ``[N]``.

    Raises:
      UserError: there are no images, or labels outside the classes of the model.
    """
    size, done = len(data), 0
    sums_of, average = jax.jit(metric_sums), jax.jit(average_crops, static_argnums=1)
    total: dict[str, np.ndarray] | None = None
    logits, all_labels, timings = [], [], []
    for images, labels in data.batches(batch_size):
        labels = check_labels(labels, predictor.description["num_classes"], len(images))
        before = time.monotonic()
        answer = predictor(images.reshape(-1, *images.shape[-3:]))
        if images.ndim == 5:
            answer = np.asarray(average(answer, images.shape[1]))
        logits.append(answer)
        all_labels.append(labels)
        timings.append((len(labels), time.monotonic() - before))
        sums = jax.device_get(sums_of(answer, labels, np.ones(len(labels), bool)))
        sums = {name: np.asarray(value, np.result_type(value, np.int64)) for name, value in sums.items()}
        total = sums if total is None else {name: total[name] + sums[name] for name in sums}
        done += len(labels)
        progress(f"{done}/{size} images, error so far {100 * (1 - total['correct'] / done):.2f} %")
    if total is None:
        raise UserError("there are no images to evaluate")
    rated = [timing for timing in timings[1:] if timing[0] == timings[0][0]] or timings
    result = {
        **summarise(total),
        "images_per_s": sum(count for count, _ in rated) / sum(seconds for _, seconds in rated),
        "seconds": sum(seconds for _, seconds in timings),
    }
    return result, np.concatenate(logits), np.concatenate(all_labels)


def summarise(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics from the sums of `binwrn_jax.evaluation.metric_sums` over a whole data set.

    Returns:
      ``n`` and ``correct`` (ints); ``error`` and ``top5_error`` in percent, ``error_low`` and
      ``error_high`` the 95 % Wilson interval of the error; ``loss`` in nats; ``ece``, the
      expected calibration error over 15 bins, in percent.
    """
    n, correct = int(sums["n"]), int(sums["correct"])
    low, high = wilson(n - correct, n)
    gaps = np.abs(sums["bin_correct"] - np.asarray(sums["bin_confidence"], np.float64))
    return {
        "n": n,
        "correct": correct,
        "error": 100 * (n - correct) / n,
        "error_low": 100 * low,
        "error_high": 100 * high,
        "top5_error": 100 * (n - int(sums["top5_correct"])) / n,
        "loss": float(sums["loss"]) / n,
        "ece": 100 * float(gaps.sum()) / n,
    }


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default.

    >>> [round(bound, 4) for bound in wilson(375, 10000)]
    [0.034, 0.0414]
    """
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each class was predicted for each true class.

    Args:
      logits: ``[N, classes]``.
      labels: int ``[N]``, in [0, classes).

    Returns:
      int64 ``[classes, classes]``: row the true class, column the predicted one.

    >>> confusion_matrix(np.eye(3)[[0, 0, 2]], np.array([0, 1, 2])).tolist()
    [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    """
    classes = logits.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    return matrix


def class_errors(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Error of each class, from `confusion_matrix`.

    Returns:
      For each class ``n`` (images), ``error`` in percent (None without images), ``mistaken_for`` (the wrong
      class that it was most often taken for, None where it never was) and ``mistakes`` (how often).
    """
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(matrix):
        wrong = row.copy()
        wrong[index] = 0
        count, mistakes = int(row.sum()), int(wrong.max())
        rows.append(
            {
                "n": count,
                "error": 100 * int(wrong.sum()) / count if count else None,
                "mistaken_for": int(wrong.argmax()) if mistakes else None,
                "mistakes": mistakes,
            }
        )
    return rows


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T with the least cross-entropy of ``softmax(logits / T)`` (Guo et al. 2017).

    The logits themselves, and so every prediction, stay as they are; only probabilities change. Fit it on a
    validation split, never on the test split.

    Args:
      logits: ``[N, classes]``.
      labels: int ``[N]``.

    Returns:
      T from 0.01 to 100, by golden-section search over its logarithm: the loss has one minimum in 1 / T.

    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)
    1.82
    """
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], 1)[:, 0]

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((normaliser - own / math.exp(log_temperature)).mean())

    low, high = math.log(0.01), math.log(100.0)
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def probabilities(logits: np.ndarray, description: Mapping[str, Any]) -> np.ndarray:
    """The probabilities of a model: ``softmax(logits / T)``, float64 ``[N, classes]``.

    Args:
      logits: ``[N, classes]``, not changed.
      description: of the model; its ``temperature``, see `fit_temperature`, is T, else T is 1.

    Raises:
      UserError: the temperature is no positive number.
    """
    temperature = description.get("temperature", 1.0)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not (0 < temperature < math.inf)
    ):
        raise UserError(f"the model's temperature is {str(temperature)[:60]!r}: expected a positive number")
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    result: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return result
