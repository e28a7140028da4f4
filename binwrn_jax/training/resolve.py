"""A run, derived from its configuration and the facts of its data set: no device, no disk, no side effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.data.splits import split_size
from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import check_network, configured_network, is_own
from binwrn_jax.nn.rules import clips_latent
from binwrn_jax.training import recipes
from binwrn_jax.training.config import check
from binwrn_jax.training.optimizer import freeze, sgd
from binwrn_jax.training.recipes import Recipe
from binwrn_jax.training.schedules import Schedule, batch_factor, cycle_ends, scaled, sgdr, step_decay

MOST_STEPS = 2**31 - 1  # int32 counts them


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
    """All facts of a run for the training loop, preflight and the paper's tables.

    Attributes:
      config: all fields, checked.
      dataset: facts about the data set.
      network: the Flax module.
      recipe: see `binwrn_jax.training.recipes.Recipe`.
      optimizer: the optax transformation, with the schedule in it.
      learning_rate: step to rate.
      steps_per_epoch: whole batches in the training split.
      total_steps: steps of the whole run.
      cycle_ends: steps at which a cycle of the learning rate ends, the last step included.
    """

    config: ConfigDict
    dataset: DatasetInfo
    network: nn.Module
    recipe: Recipe
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    steps_per_epoch: int
    total_steps: int
    cycle_ends: frozenset[int]


def resolve(config: ConfigDict, dataset: DatasetInfo, train_images: int | None = None) -> ResolvedRun:
    """Checks a configuration and derives the run from it.

    Args:
      config: see `binwrn_jax.training.config.base_config`.
      dataset: facts about its data set.
      train_images: number of images in its training split; by default what ``dataset`` says.

    Raises:
      UserError: a field has a value that no run could have, or there are fewer images than a batch.
    """
    check(config)
    if train_images is None:
        split = config.data.train_split or dataset.train_split
        train_images = split_size(dataset.name, dataset.splits, split)
    steps_per_epoch = train_images // config.batch_size
    if not steps_per_epoch:
        raise UserError(f"{train_images} training images are fewer than one batch of {config.batch_size}")
    if config.epochs * steps_per_epoch > MOST_STEPS:
        raise UserError(f"{config.epochs} epochs of {steps_per_epoch} steps are too many: lower epochs")
    learning_rate = build_schedule(config, steps_per_epoch)
    network = configured_network(config.model, dataset.num_classes)
    if is_own(config.model):
        check_network(network, dataset.image_shape, dataset.num_classes)
    recipe, optimizer = recipes.compose(config, dataset, build_optimizer(config, steps_per_epoch))
    return ResolvedRun(
        config=config,
        dataset=dataset,
        network=network,
        recipe=recipe,
        optimizer=optimizer,
        learning_rate=learning_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=config.epochs * steps_per_epoch,
        cycle_ends=frozenset(end * steps_per_epoch for end in restarts(config)),
    )


def restarts(config: ConfigDict) -> tuple[int, ...]:
    """Epochs at whose end a cycle of the learning rate ends, the last epoch included."""
    if config.schedule.name == "step":
        return (*(drop for drop in config.schedule.drops if drop < config.epochs), config.epochs)
    if config.schedule.name == "cosine":
        return (config.epochs,)
    return cycle_ends(config.epochs, config.schedule.first_cycle)


def build_schedule(config: ConfigDict, steps_per_epoch: int) -> Schedule:
    """The learning rate by step."""
    s = config.schedule
    if s.name == "step":
        schedule = step_decay(steps_per_epoch, s.rates, s.drops)
    else:
        first_cycle = config.epochs if s.name == "cosine" else s.first_cycle
        schedule = sgdr(config.epochs, steps_per_epoch, s.peak, s.floor, first_cycle)
    factor = batch_factor(config.batch_size, s.reference_batch, s.scaling)
    return scaled(schedule, factor, round(s.warmup_epochs * steps_per_epoch))


def build_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax transformation with the configured schedule, decay, momentum resets and frozen parameters."""
    resets: tuple[int, ...] = ()
    if config.schedule.name == "sgdr" and config.optimizer.reset_momentum:
        resets = tuple(end * steps_per_epoch for end in restarts(config)[:-1])
    optimizer = sgd(
        build_schedule(config, steps_per_epoch),
        config.optimizer.momentum,
        config.optimizer.weight_decay,
        resets,
        clip=clips_latent(config.model.weights),
    )
    return freeze(optimizer, config.freeze) if config.freeze else optimizer


def continuation_conflict(old: Mapping[str, Any], run: ResolvedRun) -> str:
    """Why a run with fewer epochs is not the beginning of this one; '' if it is.

    Args:
      old: the fields of that run, which differ in ``epochs`` alone.
      run: the longer run.
    """
    before = ConfigDict(dict(old))
    config, steps = run.config, run.steps_per_epoch
    change = f"epochs: {before.epochs} -> {config.epochs}"
    if before.epochs > config.epochs:
        return f"{change}: it has more"
    ends = restarts(before)
    count = ends[-1] * steps
    positions = jnp.arange(count)
    theirs, ours = (
        np.asarray(jax.jit(jax.vmap(schedule))(positions))
        for schedule in (build_schedule(before, steps), run.learning_rate)
    )
    differing = np.flatnonzero(theirs != ours)
    if not len(differing):
        return ""
    step = int(differing[0])
    return (
        f"{change}: the learning rates differ from epoch {step // steps} on, {theirs[step]:.5f} at step "
        f"{step} there and {ours[step]:.5f} here; a run goes on after a whole cycle, such as 30 epochs to 62"
    )
