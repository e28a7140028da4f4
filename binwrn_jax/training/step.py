"""The pure functions that are jitted: one training step, one evaluation step, one moments step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from binwrn_jax.data.batch import Inputs, fetch
from binwrn_jax.evaluation import cross_entropy
from binwrn_jax.parallel import sharding
from binwrn_jax.training.augment import augment
from binwrn_jax.training.state import MOMENTS_STREAM, TRAIN_STREAM, TrainState, stream_key

Metrics = dict[str, jax.Array]


class Gradients(NamedTuple):
    """What one batch gives: ``grads`` like params; new ``batch_stats``; mean ``loss``; wrong ``errors``."""

    grads: Any
    batch_stats: Any
    loss: jax.Array  # float32, nats
    errors: jax.Array  # int32


GradientFunction = Callable[[Any, Any, jax.Array, jax.Array], Gradients]


def batch_gradients(model: nn.Module) -> GradientFunction:
    """The function ``(params, batch_stats, images, labels) -> Gradients`` of the mean loss of a batch."""

    def gradients(params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Gradients:
        def loss_function(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, labels).mean(), (logits, updated["batch_stats"])

        (loss, (logits, updated)), grads = jax.value_and_grad(loss_function, has_aux=True)(params)
        return Gradients(grads, updated, loss, (logits.argmax(-1) != labels).sum(dtype=jnp.int32))

    return gradients


def accumulated(gradients: GradientFunction, count: int, group: int) -> GradientFunction:
    """The same function, computed in ``count`` micro-batches one after another: less memory, equal result.

    Micro-batches are made of whole ghost groups, so that each image is normalised among the same images
    as without; gradients and running moments, which are linear in those of the groups, are averaged.

    Args:
      gradients: see `batch_gradients`.
      count: at least 2.
      group: the model's ghost size, at least 1; the batch is a multiple of ``count`` groups.
    """

    def cut(x: jax.Array) -> jax.Array:
        # [B, ...] to [count, B / count, ...]. Micro-batch j has the groups j, j + count, ...: some of each
        # device's own, so that no image moves.
        groups = x.reshape(-1, count, group, *x.shape[1:])
        return jnp.moveaxis(groups, 1, 0).reshape(count, -1, *x.shape[1:])

    def over_micro_batches(params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Gradients:
        def add(total: Gradients, batch: tuple[jax.Array, jax.Array]) -> tuple[Gradients, None]:
            return jax.tree.map(jnp.add, total, gradients(params, batch_stats, *batch)), None

        nothing = Gradients(
            grads=jax.tree.map(jnp.zeros_like, params),
            batch_stats=jax.tree.map(jnp.zeros_like, batch_stats),
            loss=jnp.zeros([], jnp.float32),
            errors=jnp.zeros([], jnp.int32),
        )
        total, _ = jax.lax.scan(add, nothing, (cut(images), cut(labels)))
        mean = jax.tree.map(lambda x: x / count, total)
        return mean._replace(errors=total.errors)

    return over_micro_batches


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augmentation: str = "flip_crop",
    seed: int = 0,
    steps_per_epoch: int = 1,
    accumulate: int = 1,
) -> Callable[[TrainState, Inputs], tuple[TrainState, Metrics]]:
    """The SGD step: augment, forward and backward with binarised kernels, update the latent ones.

    Args:
      model: a network of `binwrn_jax.nn`.
      optimizer: see `binwrn_jax.training.optimizer.sgd`.
      augmentation: see `binwrn_jax.training.augment.augment`.
      seed: the augmentation's key is derived from it and ``state.step``.
      steps_per_epoch: when to restart the epoch's sums.
      accumulate: micro-batches, see `accumulated`; more than 1 needs a model with ghost groups.

    Returns:
      A pure function ``(state, inputs) -> (state, metrics)``, to be jitted with the state
      donated; ``inputs`` as `fetch` takes them. Metrics are ``epoch_loss`` (float32 sum of mean
      losses in nats since the epoch began), ``epoch_errors`` (int32 count) and ``loss``
      (float32, of this batch).
    """
    gradients = batch_gradients(model)
    if accumulate > 1:
        gradients = accumulated(gradients, accumulate, model.ghost_size)

    def train_step(state: TrainState, inputs: Inputs) -> tuple[TrainState, Metrics]:
        images, labels = fetch(inputs)
        images = augment(stream_key(seed, TRAIN_STREAM, state.step), images, augmentation)
        grads, batch_stats, loss, errors = gradients(state.params, state.batch_stats, images, labels)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_epoch = state.step % steps_per_epoch == 0
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            epoch_loss=jnp.where(new_epoch, 0, state.epoch_loss) + loss,
            epoch_errors=jnp.where(new_epoch, 0, state.epoch_errors) + errors,
        )
        return state, {"epoch_loss": state.epoch_loss, "epoch_errors": state.epoch_errors, "loss": loss}

    return train_step


def jit_train_step(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    steps_per_epoch: int,
    streamed: bool = False,
) -> Any:
    """The training step of a configuration as one program for all devices of a mesh.

    It is what the run executes and what ``binwrn preflight`` compiles: the state lies whole on every
    device and is donated, the batch is divided.

    Args:
      config: see `binwrn_jax.training.config.base_config`.
      model: its network.
      optimizer: its optimiser.
      mesh: from `binwrn_jax.parallel.sharding.make_mesh`.
      steps_per_epoch: see `make_train_step`.
      streamed: see `binwrn_jax.parallel.sharding.inputs`.

    Returns:
      The jitted `make_train_step`.
    """
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        make_train_step(
            model, optimizer, config.augmentation, config.seed, steps_per_epoch, config.accumulate
        ),
        donate_argnums=0,
        in_shardings=(everywhere, sharding.inputs(mesh, streamed)),
        out_shardings=everywhere,
    )


def make_moments_step(
    model: nn.Module, augmentation: str = "flip_crop", seed: int = 0
) -> Callable[[Any, Any, Inputs, jax.Array], Any]:
    """One batch of the pass that computes the BN moments for inference (section 3.2.1).

    Returns:
      A pure function ``(sums, variables, inputs, position) -> sums`` that adds the batch's
      moments ``{bn: {mean, std}}``, float32 ``[C]``, to the running sums; the augmentation's key
      is derived from ``position``, an int32 scalar.
    """

    def moments_step(sums: Any, variables: Any, inputs: Inputs, position: jax.Array) -> Any:
        images, _ = fetch(inputs)
        images = augment(stream_key(seed, MOMENTS_STREAM, position), images, augmentation)
        _, updated = model.apply(variables, images, train=True, mutable=["moments", "batch_stats"])
        return jax.tree.map(jnp.add, sums, updated["moments"])

    return moments_step
