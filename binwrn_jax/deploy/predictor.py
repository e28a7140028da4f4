"""Predictors over JAX: a model folder's network, any number of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Num, Shaped

from binwrn_jax.data.arrays import check_images
from binwrn_jax.evaluation import BATCH_SIZE
from binwrn_jax.graph.trace import split
from binwrn_jax.store.model import Model
from binwrn_jax.store.trees import call


class JaxPredictor:
    """A model folder, run by JAX on the default device.

    Any number of images is cut into batches of ``batch_size``; a smaller rest is padded to the next
    power of two, so that few shapes are compiled and one image does not cost a whole batch.

    Args:
      model: see `binwrn_jax.store.model.Model`.
      dtype: of the activations, ``'float32'`` or ``'bfloat16'``; None for the model's own.
      batch_size: images per run of the network.
    """

    def __init__(self, model: Model, *, dtype: str | None = None, batch_size: int = BATCH_SIZE) -> None:
        self.description = model.description.to_dict()
        leaves, _, function = split(partial(call, model.network_in(dtype)), model.variables)
        self._variables = jax.device_put(leaves)
        self._batch_size = batch_size
        self._apply: Callable[[Any, np.ndarray], jax.Array] = jax.jit(function)

    def __call__(self, images: np.ndarray) -> Float32[np.ndarray, "N classes"]:
        """See `Predictor`.

        Raises:
          UserError: see `binwrn_jax.data.arrays.check_images`.
        """
        shape = None if self.description.get("image_size_assumed") else self.description["image_shape"]
        images = check_images(images, shape)
        return in_batches(
            partial(self._apply, self._variables), images, self.description["num_classes"], self._batch_size
        )


def in_batches(
    network: Callable[[np.ndarray], jax.Array],
    images: Shaped[np.ndarray, "N H W C"],
    num_classes: int,
    batch_size: int,
    dtype: type = np.float32,
) -> Num[np.ndarray, "N {num_classes}"]:
    """Runs a jitted network on any number of images, see `JaxPredictor`; `dtype` ``[N, num_classes]``."""
    logits: np.ndarray = np.empty((len(images), num_classes), dtype)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        count = len(batch)
        size = min(1 << (count - 1).bit_length(), batch_size)
        padded = np.pad(batch, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        logits[start : start + count] = network(padded)[:count]
    return logits


class LayerRow(NamedTuple):
    """One convolution as ``binwrn inspect`` lists it."""

    name: str
    shape: tuple[int, int, int, int]  # (F, F, C_in, C_out)
    scale: float | None  # s of Eq. 1; None where the rule has no constant scale
    plus_share: float | None  # share of +1 among the bits, 0..1; None for 32-bit weights
    values: int  # distinct values that the convolution uses
    bits: int  # to store the weights, scales not counted
    bytes: int  # bits / 8, rounded up
