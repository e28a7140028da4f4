"""Batch-norm moments for inference, computed after training (section 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from binwrn_jax.data.batch import Inputs
from binwrn_jax.nn.layers import BN_EPSILON

RULES = ("dataset", "running")


def dataset_moments(
    moments_step: Callable[[Any, Any, Inputs, Any], Any],
    variables: Any,
    batches: Iterable[tuple[int, Inputs]],
) -> Any:
    """Averages each BN layer's batch moments over one pass of the augmented training set.

    As the MATLAB version does, means and *standard deviations* are averaged, epsilon inside:
    ``std = mean_b sqrt(var_b + 1e-5)``. (The other rule, ``'running'``, needs no pass: it is the
    running average of momentum 0.99 that training keeps in ``batch_stats``, as in Keras.)

    Args:
      moments_step: jitted result of `binwrn_jax.training.step.make_moments_step`.
      variables: ``params`` and ``batch_stats``.
      batches: pairs of position (int) and inputs.

    Returns:
      New ``batch_stats``: ``mean`` and ``var`` float32 ``[C]`` of each layer.
    """
    sums = _zeros(variables["batch_stats"])
    count = 0
    for position, inputs in batches:
        sums = moments_step(sums, variables, inputs, position)
        count += 1
    return _divide(sums, count)


@jax.jit
def _zeros(batch_stats: Any) -> Any:
    return {name: {"mean": 0 * layer["mean"], "std": 0 * layer["var"]} for name, layer in batch_stats.items()}


@jax.jit
def _divide(sums: Any, count: jax.Array) -> Any:
    return {
        name: {
            "mean": layer["mean"] / count,
            "var": jnp.maximum(jnp.square(layer["std"] / count) - BN_EPSILON, 0.0),
        }
        for name, layer in sums.items()
    }
