"""Exact evaluation: every image counts once, sums on the device, divisions on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.losses import Sums
from binwrn_jax.steps import Inputs


def evaluate(
    eval_step: Callable[[Any, Inputs], Sums],
    variables: Any,
    batches: Iterable[Inputs],
    progress: Callable[[int], None] = lambda batches_done: None,
) -> dict[str, float]:
    """Runs the evaluation step over all batches and divides.

    Args:
      eval_step: jitted result of `binwrn_jax.steps.make_eval_step`.
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


def summarise(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics from the sums of `binwrn_jax.losses.metric_sums` over a whole data set.

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
