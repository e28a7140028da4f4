"""Small data sets, whole in device memory: a batch is a vector of indices."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from binwrn_jax.data.arrays import check_arrays
from binwrn_jax.data.batch import Inputs
from binwrn_jax.data.dataset import Arrays
from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding


def epoch_order(seed: int, epoch: int, size: int) -> Int32[np.ndarray, " size"]:
    """The order of one epoch: a permutation of ``range(size)``, int32, that depends on nothing else."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size).astype(np.int32)


class StoredImages(struct.PyTreeNode):
    """Images on the device, one to a row: ``images[indices]`` gives a batch.

    A TPU lays an array ``[N, H, W, C]`` out with N innermost: to take images from it, it copies the whole
    data set at every step, padded to four times its size (docs/results/preflight.md).

    Attributes:
      rows: ``[N, H W C]``.
      shape: ``(H, W, C)``.
    """

    rows: jax.Array
    shape: tuple[int, int, int] = struct.field(pytree_node=False)

    def __getitem__(self, indices: Int32[jax.Array, "*B"]) -> UInt8[jax.Array, "*B H W C"]:
        return self.rows[indices].reshape(*indices.shape, *self.shape)


class DeviceData:
    """A data set replicated on the mesh, read by position.

    Position n is batch ``n % steps_per_epoch`` of epoch ``n // steps_per_epoch``; the global batch
    at a position is the same for any number of devices and processes. The images that do not
    fill a last batch are left out of that epoch, others in each.

    Attributes:
      size: number of images.
      steps_per_epoch: whole batches in the data set.

    Raises:
      UserError: see `binwrn_jax.data.arrays.check_arrays`.
    """

    def __init__(self, arrays: Arrays, mesh: Mesh, batch_size: int, seed: int = 0) -> None:
        images, labels = check_arrays(arrays.images, arrays.labels, len(arrays.class_names))
        self.size = len(labels)
        self.steps_per_epoch = self.size // batch_size
        self._batch_size, self._seed = batch_size, seed
        self._everywhere = sharding.replicated(mesh)
        self._training = sharding.BatchSplit(mesh, batch_size)
        # Padding is free where some devices would have fewer images than others.
        self._testing = sharding.BatchSplit(mesh, self._training.padded)
        rows = {"images": images.reshape(self.size, -1), "labels": labels}
        stored = sharding.put(rows, self._everywhere)
        self._whole = {**stored, "images": StoredImages(stored["images"], images.shape[1:])}
        self._order: tuple[int, np.ndarray] | None = None

    def check_trains(self) -> None:
        """Raises a `UserError` if the data set is smaller than one batch."""
        if not self.steps_per_epoch:
            raise UserError(f"{self.size} training images are fewer than one batch of {self._batch_size}")

    def batch(self, position: int) -> Inputs:
        """The training batch at a position, as `binwrn_jax.data.batch.fetch` takes it.

        Raises:
          UserError: the data set is smaller than a batch.
        """
        self.check_trains()
        epoch, place = divmod(position, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._seed, epoch, self.size))
        indices = self._order[1][place * self._batch_size : (place + 1) * self._batch_size]
        return self._at(indices, self._training)

    def in_order(self) -> Iterator[Inputs]:
        """All images once, in their order, the last batch padded and masked (for exact evaluation)."""
        size = self._testing.size
        for start in range(0, self.size, size):
            indices = np.arange(start, start + size, dtype=np.int32)
            mask = indices < self.size
            inputs = self._at(np.where(mask, indices, 0).astype(np.int32), self._testing)
            yield {**inputs, "mask": sharding.put(mask, self._everywhere)}

    def close(self) -> None:
        """Nothing to stop; streamed data have workers."""

    def _at(self, indices: Int32[np.ndarray, " B"], split: sharding.BatchSplit) -> Inputs:
        return {**self._whole, "indices": sharding.put(indices, self._everywhere), "split": split}
