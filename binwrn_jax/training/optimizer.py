"""SGD with momentum as the paper uses it (section 3.3)."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from binwrn_jax.errors import UserError
from binwrn_jax.training.schedules import Schedule

Params = Any
Mask = Callable[[Params], Any] | Any  # a tree of bools, or a function that gives one, as in optax


class ResettableTraceState(NamedTuple):
    """Momentum buffers, float32, and the number of updates done, int32."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    trace: Any


def conv_kernels(params: Params) -> Any:
    """A tree of bools like ``params``: True at the latent convolution kernels, which alone decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def chosen(mask: Mask, params: Params) -> Any:
    """A tree of bools like ``params``, of a mask that may be a function of them or a prefix."""
    tree = mask(params) if callable(mask) and jax.tree_util.all_leaves([mask]) else mask
    return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), tree, params)


def momentum_with_resets(momentum: float, resets: Sequence[int] = ()) -> optax.GradientTransformation:
    """Heavy-ball momentum ``m <- momentum m + g`` whose buffers become zero before given updates.

    Args:
      momentum: 0.9 in the paper; not Nesterov's.
      resets: counts of updates before which the buffers are set to zero: the SGDR restarts
        (MATLAB), or none (Keras).
    """

    def init(params: Params) -> ResettableTraceState:
        return ResettableTraceState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: ResettableTraceState, params: Params = None) -> tuple[Any, Any]:
        del params
        reset = jnp.any(state.count == jnp.asarray(tuple(resets), jnp.int32))
        decay = jnp.where(reset, 0.0, momentum)
        trace = jax.tree.map(lambda m, g: decay * m + g, state.trace, grads)
        return trace, ResettableTraceState(state.count + 1, trace)

    return optax.GradientTransformation(init, update)


def clip_latent(limit: float = 1.0, mask: Mask = conv_kernels) -> optax.GradientTransformation:
    """Cuts the update so that latent kernels stay in [-limit, limit] (BinaryConnect).

    Args:
      limit: 1 for BinaryConnect.
      mask: which parameters, as optax takes masks, see `binwrn_jax.by_path`.
    """

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        def clip(is_kernel: bool, p: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.clip(p + u, -limit, limit) - p if is_kernel else u

        return jax.tree.map(clip, chosen(mask, params), params, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def sgd(
    schedule: Schedule,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    resets: Sequence[int] = (),
    clip: bool = False,
    mask: Mask = conv_kernels,
) -> optax.GradientTransformation:
    """The paper's optimiser: ``g <- g + weight_decay w``; ``m <- momentum m + g``; ``w <- w - rate m``.

    Args:
      schedule: step to learning rate.
      momentum: 0.9.
      weight_decay: 5e-4 on MNIST, CIFAR and SVHN, 1e-4 on ImageNet32 and ImageNet; on the latent
        kernels only.
      resets: steps at which the momentum is set to zero, see `momentum_with_resets`.
      clip: keep the latent kernels in [-1, 1] after each update (BinaryConnect).
      mask: which parameters are latent kernels, as `binwrn_jax.binarize` takes it; those called ``kernel``.
    """
    parts = [
        optax.add_decayed_weights(weight_decay, mask=mask),
        momentum_with_resets(momentum, resets),
        optax.scale_by_learning_rate(schedule),
    ]
    return optax.chain(*parts, clip_latent(mask=mask)) if clip else optax.chain(*parts)


class AverageState(NamedTuple):
    """State of the wrapped optimizer, the averages of the parameters, and the number of updates, int32."""

    inner: Any
    average: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Also keeps ``average <- d average + (1 - d) w`` of the parameters after each update.

    At update t = 0, 1, ... ``d = min(decay, (1 + t) / (10 + t))``, so that averages of a short run are not
    those of its initial weights.

    Args:
      optimizer: any; its updates do not change.
      decay: 0 to below 1. The averages begin at the initial parameters.
    """

    def init(params: Params) -> AverageState:
        count = jnp.zeros([], jnp.int32)
        return AverageState(optimizer.init(params), jax.tree.map(jnp.array, params), count)

    def update(grads: Any, state: AverageState, params: Params = None) -> tuple[Any, AverageState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        new = optax.apply_updates(params, updates)
        share = 1 - jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        average = optax.incremental_update(new, state.average, share)
        return updates, AverageState(inner, average, state.count + 1)

    return optax.GradientTransformation(init, update)


def by_pattern(patterns: Sequence[str]) -> Callable[[Params], Any]:
    """A mask as optax takes them: True at the parameters whose path one of the patterns matches.

    Args:
      patterns: such as ``'conv0/kernel'`` or ``'bn*'``, with the wildcards of `fnmatch`; ``'conv0'`` stands
        for all parameters of that layer.

    Raises:
      UserError: in the mask, a pattern that matches no parameter.

    >>> by_pattern(["conv0"])({"conv0": {"kernel": 1}, "conv1": {"kernel": 2}})
    {'conv0': {'kernel': True}, 'conv1': {'kernel': False}}
    """

    def mask(params: Params) -> Any:
        paths = jax.tree_util.tree_map_with_path(
            lambda path, _: "/".join(str(getattr(key, "key", key)) for key in path), params
        )
        names = jax.tree.leaves(paths)
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise UserError(f"freeze: {pattern!r} matches no parameter; there are {', '.join(names)}")
        return jax.tree.map(lambda name: any(matches(name, pattern) for pattern in patterns), paths)

    def matches(name: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern.rstrip('/')}/*")

    return mask


def freeze(optimizer: optax.GradientTransformation, patterns: str | Mask) -> optax.GradientTransformation:
    """Keeps some parameters fixed.

    Args:
      optimizer: updates the others.
      patterns: of their paths, separated by commas, see `by_pattern`; or a mask that is true at them.
    """
    if not isinstance(patterns, str):
        return optax.chain(optimizer, optax.masked(optax.set_to_zero(), patterns))
    names = [part.strip() for part in patterns.split(",") if part.strip()]
    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), by_pattern(names)))
