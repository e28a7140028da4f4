"""Batch-norm moments for inference, computed after training (section 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from binwrn_jax.data.batch import Inputs, fetch
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.parallel import sharding
from binwrn_jax.training.recipes import Recipe
from binwrn_jax.training.state import MOMENTS_STREAM, stream_key

RULES = ("dataset", "running")


def make_moments_step(
    network: nn.Module, recipe: Recipe, seed: int = 0
) -> Callable[[Any, Any, Inputs, jax.Array], Any]:
    """One batch of the pass that computes the BN moments for inference (section 3.2.1).

    Returns:
      A pure function ``(sums, variables, inputs, position) -> sums`` that adds the batch's
      moments ``{bn: {mean, std}}``, float32 ``[C]``, to the running sums; the augmentation's key
      is derived from ``position``, an int32 scalar.
    """

    def moments_step(sums: Any, variables: Any, inputs: Inputs, position: jax.Array) -> Any:
        images, _ = fetch(inputs)
        images = recipe.augment(stream_key(seed, MOMENTS_STREAM, position), images)
        _, updated = network.apply(variables, images, train=True, mutable=["moments", "batch_stats"])
        return jax.tree.map(jnp.add, sums, updated["moments"])

    return moments_step


def jit_moments_step(network: nn.Module, recipe: Recipe, seed: int, mesh: Mesh, streamed: bool) -> Any:
    """`make_moments_step` as one program for all devices of a mesh, which divide each batch."""
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        make_moments_step(network, recipe, seed),
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, sharding.inputs(mesh, streamed), everywhere),
        out_shardings=everywhere,
    )


def dataset_moments(
    moments_step: Callable[[Any, Any, Inputs, Any], Any],
    variables: Any,
    batches: Iterable[tuple[int, Inputs]],
) -> Any:
    """Averages each BN layer's batch moments over one pass of the augmented training set.

    As in the MATLAB version, means and *standard deviations* are averaged, epsilon inside:
    ``std = mean_b sqrt(var_b + 1e-5)``. (The other rule, ``'running'``, needs no pass: it is the
    running average of momentum 0.99 that training keeps in ``batch_stats``, as in Keras.)

    Args:
      moments_step: jitted result of `make_moments_step`.
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
