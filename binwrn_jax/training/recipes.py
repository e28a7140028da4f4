"""Recipes: what training does with images, targets and loss, as one value made by composition.

    recipe = with_mixup(with_label_smoothing(paper_recipe("flip_crop"), 0.1, 10), 0.2, 10)

`paper_recipe` is the method of the paper; each ``with_*`` function takes a recipe and returns another one.
The step calls the parts and has no options of its own. docs/recipes.md has the words that choose them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real, UInt8
from ml_collections import ConfigDict

from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.data.jpeg import BOXES
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import cross_entropy
from binwrn_jax.training import augment as augmentations
from binwrn_jax.training.optimizer import AverageState, with_average
from binwrn_jax.training.state import TrainState

Images = UInt8[Array, "N H W C"]
Pixels = Real[Array, "N H W C"]
Labels = Int[Array, " N"]
Logits = Float[Array, "N classes"]
Distributions = Float[Array, "N classes"]
Losses = Float[Array, " N"]
Targets = Any  # a tree of arrays [N, ...]

# Added to the step's key, so that each part draws numbers of its own.
_JITTER, _LIGHTING, _MIXUP, _CUTMIX = 100, 101, 102, 103


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What training does with a batch.

    Attributes:
      host_crop: name of the random crop that is made while images are decoded, a key of
        `binwrn_jax.data.jpeg.BOXES`; '' for none.
      augment: ``(key, images) -> images``, uint8 ``[N, H, W, C]``, on the device. The pass that computes the
        batch-norm moments does this too, and nothing else of a recipe.
      prepare: ``(key, images, labels) -> (images, targets)``: uint8 images and int32 labels ``[N]`` to what
        the network and the loss take.
      loss: ``(logits, targets) -> losses``, float32 ``[N, classes]`` to ``[N]``, in nats.
      evaluation_params: the parameters that are evaluated and saved.
    """

    host_crop: str
    augment: Callable[[PRNGKeyArray, Images], Images]
    prepare: Callable[[PRNGKeyArray, Images, Labels], tuple[Pixels, Targets]]
    loss: Callable[[Logits, Targets], Losses]
    evaluation_params: Callable[[TrainState], Any]


def paper_recipe(augmentation: str = "flip_crop") -> Recipe:
    """The paper's recipe: augmentation, cross-entropy, the parameters as they are (sections 3.2, 4).

    Raises:
      UserError: no augmentation has this name, see `binwrn_jax.training.augment.augment`.
    """
    if augmentation not in augmentations.AUGMENTATIONS:
        known = ", ".join(augmentations.AUGMENTATIONS)
        raise UserError(f"unknown augmentation {augmentation!r}: choose one of {known}")
    return Recipe(
        host_crop=augmentation if augmentation in BOXES else "",
        augment=lambda key, images: augmentations.augment(key, images, augmentation),
        prepare=lambda key, images, labels: (images, labels),
        loss=cross_entropy,
        evaluation_params=lambda state: state.params,
    )


def compose(
    config: ConfigDict, dataset: DatasetInfo, optimizer: optax.GradientTransformation
) -> tuple[Recipe, optax.GradientTransformation]:
    """The recipe and the optimizer of a configuration, without a teacher, whose weights are on disk.

    Raises:
      UserError: lighting of images that have no colours.
    """
    fields, classes = config.recipe, dataset.num_classes
    recipe = paper_recipe(config.augmentation)
    if fields.lighting and dataset.image_shape[2] != 3:
        raise UserError(f"recipe.lighting is for colour images: those of {dataset.name} are grey")
    if fields.jitter:
        recipe = with_jitter(recipe, fields.jitter)
    if fields.lighting:
        recipe = with_lighting(recipe, fields.lighting)
    if fields.label_smoothing:
        recipe = with_label_smoothing(recipe, fields.label_smoothing, classes)
    if fields.mixup:
        recipe = with_mixup(recipe, fields.mixup, classes)
    if fields.cutmix:
        recipe = with_cutmix(recipe, fields.cutmix, classes)
    if fields.ema:
        recipe, optimizer = with_ema(recipe, optimizer, fields.ema)
    return recipe, optimizer


# --- targets --------------------------------------------------------------------------------------------


def soft_cross_entropy(logits: Logits, targets: Distributions) -> Losses:
    """Cross-entropy with a distribution over the classes for each example, in nats."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def distributions(targets: Targets, num_classes: int) -> Distributions:
    """Labels ``[N]`` as distributions float32 ``[N, classes]``; distributions as they are."""
    return jax.nn.one_hot(targets, num_classes) if targets.ndim == 1 else targets


def with_label_smoothing(recipe: Recipe, amount: float, num_classes: int) -> Recipe:
    """Mixes each target with the uniform one, whose share is ``amount`` (Szegedy et al. 2016)."""

    def prepare(key: PRNGKeyArray, images: Images, labels: Labels) -> tuple[Pixels, Targets]:
        pixels, targets = recipe.prepare(key, images, labels)
        return pixels, optax.smooth_labels(distributions(targets, num_classes), amount)

    return dataclasses.replace(recipe, prepare=prepare, loss=soft_cross_entropy)


def with_mixup(recipe: Recipe, alpha: float, num_classes: int) -> Recipe:
    """Mixes each image and target with the next one of the batch (Zhang et al. 2018).

    The weight is drawn from Beta(alpha, alpha), once for a batch. The order of a batch is random already, so
    the next image is a random one, and only one image moves between devices.
    """

    def prepare(key: PRNGKeyArray, images: Images, labels: Labels) -> tuple[Pixels, Targets]:
        pixels, targets = recipe.prepare(key, images, labels)
        weight = jax.random.beta(jax.random.fold_in(key, _MIXUP), alpha, alpha, dtype=jnp.float32)

        def mix(x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)

        return mix(pixels), mix(distributions(targets, num_classes))

    return dataclasses.replace(recipe, prepare=prepare, loss=soft_cross_entropy)


def with_cutmix(recipe: Recipe, alpha: float, num_classes: int) -> Recipe:
    """Takes a patch of each image, and that share of its target, from the next one (Yun et al. 2019).

    The share is drawn from Beta(alpha, alpha) and the place uniformly, once for a batch; what of the patch
    lies outside the image does not count.
    """

    def prepare(key: PRNGKeyArray, images: Images, labels: Labels) -> tuple[Pixels, Targets]:
        pixels, targets = recipe.prepare(key, images, labels)
        targets = distributions(targets, num_classes)
        key_share, key_row, key_column = jax.random.split(jax.random.fold_in(key, _CUTMIX), 3)
        side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha, dtype=jnp.float32))
        height, width = pixels.shape[1:3]

        def inside(key: PRNGKeyArray, size: int) -> jax.Array:
            centre = jax.random.uniform(key, (), jnp.float32) * size
            return jnp.abs(jnp.arange(size, dtype=jnp.float32) + 0.5 - centre) < side * size / 2

        patch = inside(key_row, height)[:, None] & inside(key_column, width)[None, :]
        share = patch.mean(dtype=jnp.float32)
        mixed = jnp.where(patch[None, :, :, None], jnp.roll(pixels, 1, axis=0), pixels)
        return mixed, (1 - share) * targets + share * jnp.roll(targets, 1, axis=0)

    return dataclasses.replace(recipe, prepare=prepare, loss=soft_cross_entropy)


def with_distillation(
    recipe: Recipe, teacher: Callable[[Pixels], Logits], weight: float = 0.9, temperature: float = 4.0
) -> Recipe:
    """Also learns from the logits of a teacher (Hinton et al. 2015).

    Args:
      recipe: with the loss that keeps the share ``1 - weight``.
      teacher: images as the network gets them, to logits float32 ``[N, classes]``; it is not trained.
      weight: share of ``temperature^2 KL(teacher || network)``, both softened by the temperature.
      temperature: divides both logits.
    """

    def prepare(key: PRNGKeyArray, images: Images, labels: Labels) -> tuple[Pixels, Targets]:
        pixels, targets = recipe.prepare(key, images, labels)
        return pixels, (targets, jax.lax.stop_gradient(teacher(pixels)))

    def loss(logits: Logits, targets: Targets) -> Losses:
        own, taught = targets
        student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        softened = jax.nn.softmax(taught.astype(jnp.float32) / temperature)
        divergence = temperature**2 * optax.kl_divergence(student, softened)
        return (1 - weight) * recipe.loss(logits, own) + weight * divergence

    return dataclasses.replace(recipe, prepare=prepare, loss=loss)


# --- weights --------------------------------------------------------------------------------------------


def with_ema(
    recipe: Recipe, optimizer: optax.GradientTransformation, decay: float
) -> tuple[Recipe, optax.GradientTransformation]:
    """Evaluates and saves averages of the latent weights, binarised.

    Their batch-norm moments are computed for them (section 3.2.1), not taken from training.
    """

    def evaluation_params(state: TrainState) -> Any:
        average: AverageState = state.opt_state
        return average.average

    return dataclasses.replace(recipe, evaluation_params=evaluation_params), with_average(optimizer, decay)


# --- images ---------------------------------------------------------------------------------------------


def with_jitter(recipe: Recipe, magnitude: float) -> Recipe:
    """Random colours and shapes before the recipe's own augmentation, see `augment.jitter`."""

    def augment(key: PRNGKeyArray, images: Images) -> Images:
        return recipe.augment(key, augmentations.jitter(jax.random.fold_in(key, _JITTER), images, magnitude))

    return dataclasses.replace(recipe, augment=augment)


def with_lighting(recipe: Recipe, deviation: float) -> Recipe:
    """Random steps along the principal colours before the own augmentation, see `augment.lighting`."""

    def augment(key: PRNGKeyArray, images: Images) -> Images:
        return recipe.augment(
            key, augmentations.lighting(jax.random.fold_in(key, _LIGHTING), images, deviation)
        )

    return dataclasses.replace(recipe, augment=augment)
