"""Data sets too large for memory: batches decoded by worker processes, by position.

An element of the pipeline is this process's share of a global batch. Its position alone determines it: seed
and epoch choose the records; seed, epoch and record choose each crop. So the number of processes and workers
changes no pixel, and a resumed run begins at the position of its step. Grain hands the positions to the
workers in turn and returns the batches in order through shared memory.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from binwrn_jax.data import jpeg
from binwrn_jax.data.batch import Inputs
from binwrn_jax.data.dataset import Dataset, DatasetInfo, Records
from binwrn_jax.data.failures import DamagedError, naming
from binwrn_jax.data.images import cut
from binwrn_jax.data.on_device import epoch_order
from binwrn_jax.data.workers import Batch, iterate_batches, stream, worker_count
from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding

# Grain requires a number of elements; training has no last position.
_ENDLESS = 1 << 40

_order = functools.lru_cache(maxsize=2)(epoch_order)  # two: positions around the end of an epoch


class TrainBatches:
    """Random access to training batches: ``self[position]``, made anew at each access.

    Args:
      records: of the split.
      info: of the data set.
      batch_size: of the global batch.
      rows: the rows of the global batch to return; rows beyond its end are padding.
      seed: seeds the order and the augmentation.
      augmentation: its crop is made here, see `binwrn_jax.data.jpeg.BOXES`; the rest on the device.
    """

    def __init__(
        self, records: Records, info: DatasetInfo, batch_size: int, rows: range, seed: int, augmentation: str
    ) -> None:
        self._records, self._info = records, info
        self._batch_size, self._rows = batch_size, rows
        self._seed, self._box = seed, jpeg.BOXES.get(augmentation)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, position: int) -> Batch:
        """``images`` uint8 ``[rows, H, W, C]`` and ``labels`` int32 ``[rows]`` of a global batch."""
        size = len(self._records)
        epoch, place = divmod(position, size // self._batch_size)
        start = place * self._batch_size
        end = start + min(self._rows.stop, self._batch_size)
        indices = _order(self._seed, epoch, size)[start + self._rows.start : end].tolist()
        images = np.zeros((len(self._rows), *self._info.image_shape), np.uint8)
        labels = np.zeros(len(self._rows), np.int32)
        for row, (index, example) in enumerate(zip(indices, self._records.read(indices), strict=True)):
            labels[row] = example.label
            with _decoding(self._records, index):
                boxes = None
                if self._box is not None:
                    rng = jpeg.random_stream(self._seed, epoch, index)
                    boxes = [self._box(*jpeg.image_size(example.image), rng)]
                cut(example.image, self._info.image_shape, self._info.resize, boxes, images[row : row + 1])
        return {"images": images, "labels": labels}


class TestBatches:
    """Random access to a split in record order, the last batch padded.

    Args:
      records, info, batch_size, rows: see `TrainBatches`.
      crops: 1 or 25, see `binwrn_jax.data.jpeg.crop_boxes`.
    """

    __test__ = False  # for pytest

    def __init__(
        self, records: Records, info: DatasetInfo, batch_size: int, rows: range, crops: int = 1
    ) -> None:
        self._records, self._info = records, info
        self._batch_size, self._rows, self._crops = batch_size, rows, crops

    def __len__(self) -> int:
        return -(-len(self._records) // self._batch_size)

    def __getitem__(self, position: int) -> Batch:
        """``images`` uint8 ``[rows, H, W, C]``, with 25 crops ``[rows, 25, H, W, C]``; ``labels`` int32 and
        ``mask`` bool ``[rows]``, False at padding."""
        start = position * self._batch_size
        indices = range(start + self._rows.start, start + self._rows.stop)
        images = np.zeros((len(indices), self._crops, *self._info.image_shape), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        mask = np.array([index < len(self._records) for index in indices], bool)
        there = [index for index in indices if index < len(self._records)]
        for row, (index, example) in enumerate(zip(there, self._records.read(there), strict=True)):
            labels[row] = example.label
            with _decoding(self._records, index):
                boxes = None
                if self._crops > 1:
                    boxes = jpeg.crop_boxes(*jpeg.image_size(example.image), index, self._crops)
                cut(example.image, self._info.image_shape, self._info.resize, boxes, images[row])
        return {"images": images[:, 0] if self._crops == 1 else images, "labels": labels, "mask": mask}


@contextlib.contextmanager
def _decoding(records: Records, index: int) -> Iterator[None]:
    """Turns an error of the decoder into one line that names the record."""
    with naming(records.describe(index), records.folder):
        try:
            yield
        except Exception as error:  # decoders raise a dozen types, all for damaged bytes
            raise DamagedError(f"{type(error).__name__}: {error}") from error


class StreamedData:
    """A split read from disk as it is needed; the same interface as `DeviceData`.

    The global batch at a position is the same for any number of devices, processes and workers. The records
    that do not fill a last batch are left out of that epoch, others in each.

    Args:
      dataset: see `binwrn_jax.data.open.open_dataset`.
      split: of it.
      mesh: the devices.
      batch_size: of the global batch.
      seed: seeds the order and the augmentation.
      augmentation: see `TrainBatches`.
      crops: see `TestBatches`.
      workers: processes that decode, beside each training process; 0: threads of this one; -1: a process for
        each core.
      prefetch: batches to have ready ahead of the step.

    Attributes:
      size: number of images.
      steps_per_epoch: whole batches in the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        mesh: Mesh,
        batch_size: int,
        *,
        seed: int = 0,
        augmentation: str = "none",
        crops: int = 1,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        records, info = dataset.records(split), dataset.info
        self.size = len(records)
        self.steps_per_epoch = self.size // batch_size
        self._batch_size = batch_size
        self._training = sharding.BatchSplit(mesh, batch_size)
        self._testing = sharding.BatchSplit(mesh, self._training.padded)
        self._workers, self._prefetch = worker_count(workers), max(1, prefetch)
        rows = sharding.local_rows(self._training)
        self._train = TrainBatches(records, info, batch_size, rows, seed, augmentation)
        self._test = TestBatches(records, info, self._testing.size, rows, crops)
        self._stream: Any = None
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def check_trains(self) -> None:
        """Raises a `UserError` if the data set is smaller than one batch."""
        if not self.steps_per_epoch:
            raise UserError(f"{self.size} training images are fewer than one batch of {self._batch_size}")

    def batch(self, position: int) -> Inputs:
        """The training batch at a position; fast if it follows the batch of the last call."""
        if position != self._next:
            self.close()
            self._stream = self._open(self._train, position)
            self._batches = iterate_batches(self._stream)
        local = next(self._batches)
        self._next = position + 1
        return self._put(local, self._training)

    def in_order(self) -> Iterator[Inputs]:
        """All images once, in their order, the last batch padded and masked (for exact evaluation)."""
        iterator = self._open(self._test, 0)
        try:
            for local in iterate_batches(iterator):
                yield self._put(local, self._testing)
        finally:
            iterator.close()

    def close(self) -> None:
        """Stops the workers; a further `batch` starts them again."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._batches, self._next = None, iter(()), -1

    def _open(self, source: Any, position: int) -> Any:
        return stream(source, position, min(self._workers, len(source)), self._prefetch)

    def _put(self, local: Batch, split: sharding.BatchSplit) -> Inputs:
        return {**sharding.from_local(local, split), "split": split}


class StreamedImages:
    """A split for `binwrn_jax.evaluation.measure`: read from disk, cropped as at the end of training.

    Args:
      dataset: see `binwrn_jax.data.open.open_dataset`.
      split: of it.
      limit: only so many images, the first ones.
      crops: 1 or 25.
      workers: see `StreamedData`.
    """

    def __init__(
        self, dataset: Dataset, split: str, limit: int | None = None, crops: int = 1, workers: int = 0
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, not {limit}")
        self._records, self._info = dataset.records(split), dataset.info
        self._size = min(len(self._records), limit or len(self._records))
        self._crops, self._workers = crops, worker_count(workers)

    def __len__(self) -> int:
        return self._size

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "N ..."], Int32[np.ndarray, " N"]]]:
        """See `binwrn_jax.evaluation.Images`; with 25 crops a batch has a 25th of the images."""
        size = -(-batch_size // self._crops)
        source = TestBatches(self._records, self._info, size, range(size), self._crops)
        iterator = stream(source, 0, min(self._workers, -(-self._size // size)), 2)
        try:
            for position, batch in enumerate(iterate_batches(iterator)):
                count = min(size, self._size - position * size)
                yield batch["images"][:count], batch["labels"][:count]
                if count < size or (position + 1) * size == self._size:
                    return
        finally:
            iterator.close()
