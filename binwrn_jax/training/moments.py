"""Batch-norm moments for inference, computed after training (section 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from binwrn_jax.data.batch import Inputs, fetch
from binwrn_jax.errors import UserError
from binwrn_jax.nn.binarize import path_of
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.parallel import sharding
from binwrn_jax.training.recipes import Recipe
from binwrn_jax.training.state import MOMENTS_STREAM, network_keys, stream_key

Tree = Any

RULES = ("dataset", "running")

# Running averages are linear in their old value: a large one shows the factor, to the last bit but one.
_LARGE = 2.0**40
_DECIMALS = 1e6  # momentum is nearly always given with at most six decimals


def recompute_moments(
    update: Callable[[Tree, Any], Tree],
    statistics: Tree,
    batches: Iterable[Any],
    *,
    epsilon: float = BN_EPSILON,
    is_variance: Callable[[str], bool] | None = None,
) -> Tree:
    """Batch-norm moments for inference of any network: Flax Linen, NNX, Equinox, your own (section 3.2.1).

    Means and *standard deviations* of the batches are averaged, with ``epsilon`` inside, over one pass of the
    training set, augmented as in training. The moments of a batch are found from how the network's running
    averages move: they are ``m old + (1 - m) batch``, whatever the network is and its momentum m.

    Args:
      update: ``update(statistics, batch)``: the running averages after one batch in training; it is jitted.
      statistics: the tree of running averages, of any values. Its whole numbers (Equinox counts batches)
        become 0.
      batches: what ``update`` takes, such as images.
      epsilon: of the layers.
      is_variance: tells variances from means by their path, such as ``'norm/var'``; None for those that are
        called ``var``, and the second of each pair in an Equinox state.

    Returns:
      A tree like ``statistics``.

    Raises:
      UserError: there is no batch, or an average is none of the kind above.

    >>> def update(old, batch):
    ...     new = {"mean": batch.mean(), "var": batch.var()}
    ...     return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)
    >>> old = {"mean": jnp.zeros(()), "var": jnp.ones(())}
    >>> found = recompute_moments(update, old, [jnp.array([1.0, 3.0]), jnp.array([5.0, 7.0])])
    >>> round(float(found["mean"]), 4), round(float(found["var"]), 4)
    (4.0, 1.0)
    """
    add = jax.jit(partial(_add_batch, update, is_variance or _is_variance, epsilon))
    sums, count = jax.tree.map(jnp.zeros_like, statistics), 0
    for batch in batches:
        sums, usable = add(sums, statistics, batch)
        if count == 0:
            _check_usable(usable)
        count += 1
    if not count:
        raise UserError("batch-norm moments need at least one batch")
    return _divide(sums, count, is_variance or _is_variance, epsilon)


def _is_variance(path: str) -> bool:
    *_, before, last = ("", "", *path.split("/"))
    return last == "var" or (last == "1" and before.isdigit())


def _check_usable(usable: Tree) -> None:
    for path, flag in jax.tree_util.tree_leaves_with_path(usable):
        if not flag:
            raise UserError(
                f"{path_of(path)} is no running average of batches, m old + (1 - m) batch: give those alone, "
                "from "
                "a network in training"
            )


def _is_average(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _add_batch(
    update: Callable[[Tree, Any], Tree],
    is_variance: Callable[[str], bool],
    epsilon: float,
    sums: Tree,
    statistics: Tree,
    batch: Any,
) -> tuple[Tree, Tree]:
    """The sums with a batch's means and standard deviations, and whether each is a running average.

    What is none counts with the value that it has.
    """

    def start(value: float) -> Tree:
        return jax.tree.map(lambda x: jnp.full_like(x, value) if _is_average(x) else x, statistics)

    # The network normalises by the moments of the batch both times: XLA computes it once.
    low, high = update(start(0.0), batch), update(start(_LARGE), batch)
    rest = jax.tree.map(lambda a, b: _rest(a, b) if _is_average(a) else jnp.ones_like(a), low, high)
    usable = jax.tree.map(lambda r: ((r > 1e-6) & (r <= 1)).all(), rest)

    def add(path: Any, total: Any, old: Any, moved: Any, share: Any, good: Any) -> Any:
        if not _is_average(total):
            return total
        moment = jnp.where(good, moved / share, old)
        return total + (jnp.sqrt(moment + epsilon) if is_variance(path_of(path)) else moment)

    return jax.tree_util.tree_map_with_path(add, sums, statistics, low, rest, usable), usable


def _rest(low: jax.Array, high: jax.Array) -> jax.Array:
    """1 - m of ``m old + (1 - m) batch``, from its results for 0 and `_LARGE`."""
    rest = 1 - (high - low) / _LARGE
    decimal = jnp.round(rest * _DECIMALS) / _DECIMALS
    return jnp.where(jnp.abs(decimal - rest) < 2.5e-7, decimal, rest)


def _divide(sums: Tree, count: Any, is_variance: Callable[[str], bool], epsilon: float) -> Tree:
    """Averages of means, and variances from averages of standard deviations."""

    def divide(path: Any, total: Any) -> Any:
        if not _is_average(total):
            return total
        if is_variance(path_of(path)):
            return jnp.maximum(jnp.square(total / count) - epsilon, 0.0)
        return total / count

    return jax.tree_util.tree_map_with_path(divide, sums)


def make_moments_step(
    network: nn.Module, recipe: Recipe, seed: int = 0
) -> Callable[[Any, Any, Inputs, jax.Array], Any]:
    """One batch of the pass that computes the BN moments for inference (section 3.2.1).

    Returns:
      A pure function ``(sums, variables, inputs, position) -> sums`` that adds the batch's
      means and standard deviations, float32 ``[C]``, to a tree like ``batch_stats``; the
      augmentation's key is derived from ``position``, an int32 scalar.
    """

    def moments_step(sums: Any, variables: Any, inputs: Inputs, position: jax.Array) -> Any:
        images, _ = fetch(inputs)
        key = stream_key(seed, MOMENTS_STREAM, position)
        images = recipe.augment(key, images)

        def run(statistics: Any, *collections: str) -> Any:
            given = {**variables, "batch_stats": statistics}
            mutable = [*collections, "batch_stats"]
            return network.apply(given, images, train=True, mutable=mutable, rngs=network_keys(key))[1]

        updated = run(variables["batch_stats"], "moments")
        collected = _collected(updated.get("moments", {}), sums)
        if collected is not None:
            return jax.tree.map(jnp.add, sums, collected)
        # Layers that do not collect their moments, such as Flax' own.
        update = lambda statistics, _: run(statistics)["batch_stats"]  # noqa: E731
        return _add_batch(update, _is_variance, BN_EPSILON, sums, variables["batch_stats"], images)[0]

    return moments_step


def _collected(moments: Mapping[str, Any], like: Tree) -> Tree | None:
    """Means and standard deviations that `BatchNorm` collects, in a tree like ``batch_stats``; else None."""
    found = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moments)}
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: f"{path_of(path[:-1])}/{'std' if _is_variance(path_of(path)) else 'mean'}", like
    )
    if set(jax.tree.leaves(names)) - set(found):
        return None
    return jax.tree.map(lambda name: found[name], names)


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
    return _divide_all(sums, count)


@jax.jit
def _zeros(batch_stats: Any) -> Any:
    return jax.tree.map(lambda leaf: 0 * leaf, batch_stats)


@jax.jit
def _divide_all(sums: Any, count: jax.Array) -> Any:
    return _divide(sums, count, _is_variance, BN_EPSILON)
