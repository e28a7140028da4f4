"""SGD with momentum as the paper uses it (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from binwrn_jax.training.schedules import Schedule

Params = Any


class ResettableTraceState(NamedTuple):
    """Momentum buffers, float32, and the number of updates done, int32."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    trace: Any


def conv_kernels(params: Params) -> Any:
    """A tree of bools like ``params``: True at the latent convolution kernels, which alone decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


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


def clip_latent(limit: float = 1.0) -> optax.GradientTransformation:
    """Cuts the update so that latent convolution kernels stay in [-limit, limit] (BinaryConnect)."""

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        def clip(is_kernel: bool, p: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.clip(p + u, -limit, limit) - p if is_kernel else u

        return jax.tree.map(clip, conv_kernels(params), params, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def sgd(
    schedule: Schedule,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    resets: Sequence[int] = (),
    clip: bool = False,
) -> optax.GradientTransformation:
    """The paper's optimiser: ``g <- g + weight_decay w``; ``m <- momentum m + g``; ``w <- w - rate m``.

    Args:
      schedule: step to learning rate.
      momentum: 0.9.
      weight_decay: 5e-4 on MNIST, CIFAR and SVHN, 1e-4 on ImageNet32 and ImageNet; on the latent
        convolution kernels only.
      resets: steps at which the momentum is set to zero, see `momentum_with_resets`.
      clip: keep the latent kernels in [-1, 1] after each update (BinaryConnect).
    """
    parts = [
        optax.add_decayed_weights(weight_decay, mask=conv_kernels),
        momentum_with_resets(momentum, resets),
        optax.scale_by_learning_rate(schedule),
    ]
    return optax.chain(*parts, clip_latent()) if clip else optax.chain(*parts)
