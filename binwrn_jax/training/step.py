"""The training step: a pure function, and the same as one program for all devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from binwrn_jax.data.batch import Inputs, fetch
from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding
from binwrn_jax.training.recipes import Recipe
from binwrn_jax.training.resolve import ResolvedRun
from binwrn_jax.training.state import TRAIN_STREAM, TrainState, network_keys, stream_key

Metrics = dict[str, jax.Array]

# Added to the step's key for what a recipe draws after the augmentation.
_PREPARE = 1_000_000


class Batch(NamedTuple):
    """The input of a gradient: ``images`` and ``targets`` of a recipe, ``labels`` int32 ``[N]``."""

    images: jax.Array
    targets: Any
    labels: jax.Array


class Gradients(NamedTuple):
    """Of a batch: ``grads`` like params; new ``batch_stats``; mean ``loss``; number of ``errors``."""

    grads: Any
    batch_stats: Any
    loss: jax.Array  # float32, nats
    errors: jax.Array  # int32


GradientFunction = Callable[[Any, Any, Batch, PRNGKeyArray], Gradients]


def batch_gradients(network: nn.Module, loss: Callable[[jax.Array, Any], jax.Array]) -> GradientFunction:
    """The function ``(params, batch_stats, batch, key) -> Gradients`` of the mean loss of a batch.

    The key is for what the network draws itself, such as dropout; the paper's draws nothing.
    """

    def gradients(params: Any, batch_stats: Any, batch: Batch, key: PRNGKeyArray) -> Gradients:
        def loss_function(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": batch_stats}
            options: dict[str, Any] = {"train": True, "mutable": ["batch_stats"], "rngs": network_keys(key)}
            logits, updated = network.apply(variables, batch.images, **options)
            return loss(logits, batch.targets).mean(), (logits, updated.get("batch_stats", {}))

        (mean, (logits, updated)), grads = jax.value_and_grad(loss_function, has_aux=True)(params)
        errors = (logits.argmax(-1) != batch.labels).sum(dtype=jnp.int32)
        return Gradients(grads, updated, mean, errors)

    return gradients


def accumulated(gradients: GradientFunction, count: int, group: int) -> GradientFunction:
    """The same function, computed in ``count`` micro-batches one after another: less memory, equal result.

    Micro-batches are made of whole ghost groups, so that each image is normalised among the same images
    as without; gradients and running moments, which are linear in those of the groups, are averaged.

    Args:
      gradients: see `batch_gradients`.
      count: at least 2.
      group: the network's ghost size, at least 1; the batch is a multiple of ``count`` groups.
    """

    def cut(x: jax.Array) -> jax.Array:
        # [B, ...] to [count, B / count, ...]. Micro-batch j has the groups j, j + count, ...: some of each
        # device's own, so that no image moves.
        groups = x.reshape(-1, count, group, *x.shape[1:])
        return jnp.moveaxis(groups, 1, 0).reshape(count, -1, *x.shape[1:])

    def over_micro_batches(params: Any, batch_stats: Any, batch: Batch, key: PRNGKeyArray) -> Gradients:
        def add(total: Gradients, part: tuple[Batch, jax.Array]) -> tuple[Gradients, None]:
            own = jax.random.fold_in(key, part[1])
            return jax.tree.map(jnp.add, total, gradients(params, batch_stats, part[0], own)), None

        nothing = Gradients(
            grads=jax.tree.map(jnp.zeros_like, params),
            batch_stats=jax.tree.map(jnp.zeros_like, batch_stats),
            loss=jnp.zeros([], jnp.float32),
            errors=jnp.zeros([], jnp.int32),
        )
        total, _ = jax.lax.scan(add, nothing, (jax.tree.map(cut, batch), jnp.arange(count)))
        mean = jax.tree.map(lambda x: x / count, total)
        return mean._replace(errors=total.errors)

    return over_micro_batches


def make_train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    seed: int = 0,
    steps_per_epoch: int = 1,
    accumulate: int = 1,
) -> Callable[[TrainState, Inputs], tuple[TrainState, Metrics]]:
    """The SGD step: augment, forward and backward with binarised kernels, update the latent ones.

    Args:
      network: of `binwrn_jax.nn`, or another that is called as these are.
      optimizer: see `binwrn_jax.training.optimizer.sgd`.
      recipe: see `binwrn_jax.training.recipes`; ``paper_recipe("flip_crop")`` is the paper's.
      seed: the recipe's key is derived from it and ``state.step``.
      steps_per_epoch: when to restart the epoch's sums.
      accumulate: micro-batches, see `accumulated`; more than 1 needs a network with ghost groups.

    Returns:
      A pure function ``(state, inputs) -> (state, metrics)``, to be jitted with the state
      donated; ``inputs`` as `fetch` takes them. Metrics are ``epoch_loss`` (float32 sum of mean
      losses in nats since the epoch began), ``epoch_errors`` (int32 count) and ``loss``
      (float32, of this batch).
    """
    gradients = batch_gradients(network, recipe.loss)
    if accumulate > 1:
        group = getattr(network, "ghost_size", 0)
        if not group:
            raise UserError(
                f"accumulate {accumulate} needs a network that normalises by ghost groups: give yours the "
                "attribute ghost_size, that of its batch norms"
            )
        gradients = accumulated(gradients, accumulate, group)

    def train_step(state: TrainState, inputs: Inputs) -> tuple[TrainState, Metrics]:
        images, labels = fetch(inputs)
        key = stream_key(seed, TRAIN_STREAM, state.step)
        images = recipe.augment(key, images)
        images, targets = recipe.prepare(jax.random.fold_in(key, _PREPARE), images, labels)
        batch = Batch(images, targets, labels)
        grads, batch_stats, loss, errors = gradients(state.params, state.batch_stats, batch, key)
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


def jit_train_step(run: ResolvedRun, mesh: Mesh) -> Any:
    """The training step of a run as one program for all devices of a mesh.

    It is what the loop executes and what ``binwrn preflight`` compiles: the state lies whole on every
    device and is donated, the batch is divided.

    Returns:
      The jitted `make_train_step`.
    """
    everywhere = sharding.replicated(mesh)
    step = make_train_step(
        run.network,
        run.optimizer,
        run.recipe,
        run.config.seed,
        run.steps_per_epoch,
        run.config.accumulate,
    )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(everywhere, sharding.inputs(mesh, run.dataset.streamed)),
        out_shardings=everywhere,
    )
