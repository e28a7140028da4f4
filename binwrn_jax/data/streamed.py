"""Data sets too large for memory: batches decoded by worker processes, by position.

An element of the pipeline is this process's share of a whole global batch, made from its position alone:
which records, from (seed, epoch); how each is cropped, from (seed, epoch, record). So neither the number of
processes nor that of workers changes a pixel, and to resume at a step is to begin at that position. Grain
hands the positions to the workers in turn and gives the batches back in order through shared memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from binwrn_jax.data import jpeg as imagenet
from binwrn_jax.data.batch import Inputs
from binwrn_jax.data.on_device import DeviceData, epoch_order
from binwrn_jax.data.records import Records, parse
from binwrn_jax.data.sources import DatasetSpec, dataset_spec, load, open_split
from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding

Batch = dict[str, np.ndarray]

# Grain wants to know the number of elements; training has no last position.
_ENDLESS = 1 << 40

_order = functools.lru_cache(maxsize=2)(epoch_order)  # two: positions around the end of an epoch


class TrainBatches:
    """Random access to training batches: ``self[position]``, made anew at each access.

    Args:
      name: of the data set and its split, for messages.
      records: of the split.
      num_classes: of the data set.
      batch_size: of the global batch.
      rows: the rows of the global batch that are wanted; those beyond its end are padding.
      seed: of order and augmentation.
      augmentation: its crop is made here, see `binwrn_jax.data.jpeg.BOXES`; the rest on the device.
    """

    def __init__(
        self, name: str, records: Records, num_classes: int, batch_size: int, rows: range, seed: int,
        augmentation: str,
    ) -> None:  # fmt: skip
        self._name, self._records, self._num_classes = name, records, num_classes
        self._batch_size, self._rows = batch_size, rows
        self._seed, self._augmentation = seed, augmentation

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, position: int) -> Batch:
        """``images`` uint8 ``[rows, 224, 224, 3]`` and ``labels`` int32 ``[rows]`` of a global batch."""
        size = len(self._records)
        epoch, place = divmod(position, size // self._batch_size)
        start = place * self._batch_size
        end = start + min(self._rows.stop, self._batch_size)
        indices = _order(self._seed, epoch, size)[start + self._rows.start : end].tolist()
        images = np.zeros((len(self._rows), imagenet.SIZE, imagenet.SIZE, 3), np.uint8)
        labels = np.zeros(len(self._rows), np.int32)
        box = imagenet.BOXES.get(self._augmentation)
        records = _read(self._name, self._records, indices)
        for row, (index, record) in enumerate(zip(indices, records, strict=True)):
            with _blame(self._name, index):
                encoded, labels[row] = _checked(record, self._num_classes)
                height, width = imagenet.image_size(encoded)
                if box is None:
                    crop = imagenet.center_box(height, width)
                else:
                    crop = box(height, width, imagenet.random_stream(self._seed, epoch, index))
                imagenet.decode(encoded, [crop], images[row : row + 1])
        return {"images": images, "labels": labels}


class TestBatches:
    """Random access to a split in record order, the last batch padded.

    Args:
      name, records, num_classes, batch_size, rows: see `TrainBatches`.
      crops: 1 or 25, see `binwrn_jax.data.jpeg.crop_boxes`.
    """

    __test__ = False  # for pytest

    def __init__(
        self, name: str, records: Records, num_classes: int, batch_size: int, rows: range, crops: int = 1
    ) -> None:
        self._name, self._records, self._num_classes = name, records, num_classes
        self._batch_size, self._rows, self._crops = batch_size, rows, crops

    def __len__(self) -> int:
        return -(-len(self._records) // self._batch_size)

    def __getitem__(self, position: int) -> Batch:
        """``images`` uint8 ``[rows, 224, 224, 3]``, with 25 crops ``[rows, 25, 224, 224, 3]``; ``labels``
        int32 and ``mask`` bool ``[rows]``, False at padding."""
        start = position * self._batch_size
        indices = range(start + self._rows.start, start + self._rows.stop)
        size = imagenet.SIZE
        images = np.zeros((len(indices), self._crops, size, size, 3), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        mask = np.array([index < len(self._records) for index in indices], bool)
        there = [index for index in indices if index < len(self._records)]
        for row, (index, record) in enumerate(
            zip(there, _read(self._name, self._records, there), strict=True)
        ):
            with _blame(self._name, index):
                encoded, labels[row] = _checked(record, self._num_classes)
                boxes = imagenet.crop_boxes(*imagenet.image_size(encoded), index, self._crops)
                imagenet.decode(encoded, boxes, images[row])
        return {"images": images[:, 0] if self._crops == 1 else images, "labels": labels, "mask": mask}


def _read(name: str, records: Records, indices: list[int]) -> list[bytes]:
    with _blame(name, indices[0] if indices else 0):
        return records.read(indices)


def _checked(record: bytes, num_classes: int) -> tuple[bytes, int]:
    encoded, label = parse(record)
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label}, but there are {num_classes} classes")
    return encoded, label


@contextlib.contextmanager
def _blame(name: str, index: int) -> Iterator[None]:
    """Damage of any kind becomes one line that names the record."""
    try:
        yield
    except Exception as error:  # readers and decoders raise a dozen types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"cannot read {name} near record {index} ({reason}): damaged or foreign files; prepare the data "
            "set again, or set TFDS_DATA_DIR or --config.data.dir to a good one"
        ) from error


# --- workers --------------------------------------------------------------------------------------------


def worker_count(workers: int) -> int:
    """The number of worker processes that a configuration asks for: -1 is one for each core."""
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stream(source: Any, start: int, workers: int, prefetch: int) -> Any:
    """The elements of a random access source from ``start`` on, in order, made ahead of their use.

    Args:
      source: `TrainBatches` or `TestBatches`.
      start: first position.
      workers: processes; 0: threads of this process.
      prefetch: elements to have ready, at least so many.

    Returns:
      A Grain iterator, to be closed.
    """
    import grain

    elements = grain.MapDataset.source(source).slice(slice(start, None))
    if not workers:
        threads = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        return iter(elements.to_iter_dataset(threads))
    if not flags.FLAGS.is_parsed():  # Grain's own flags, which no command here offers: the defaults
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(1, -(-prefetch // workers))
    )
    init = functools.partial(_init_worker, os.getpid())
    return iter(elements.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=init))


def _init_worker(parent: int, index: int, count: int) -> None:
    """What a worker does first: it leaves signals and accelerators to its parent, and dies with it."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # the parent saves first, and then stops its workers
        signal.signal(signum, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def follow(iterator: Any) -> Iterator[Batch]:
    """The elements of `stream`; what goes wrong in a worker becomes a `UserError`."""
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except UserError as error:  # without the worker's traceback
            raise UserError(str(error)) from None
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            code = str(error).partition("exit code ")[2].partition(".")[0]
            raise UserError(
                f"a data worker died (exit code {code}; -9 is often a lack of memory): start again to resume "
                "at the last checkpoint, with fewer --config.data.workers where memory is short"
            ) from error


# --- what the loop uses ---------------------------------------------------------------------------------


class StreamedData:
    """A split read from disk as it is needed; the same interface as `DeviceData`.

    The global batch at a position is the same for any number of devices, processes and workers. The records
    that do not fill a last batch are left out of that epoch, others in each.

    Args:
      spec: of a streamed data set.
      split: of it.
      data_dir: see `binwrn_jax.data.sources.load`.
      mesh: the devices.
      batch_size: of the global batch.
      seed: of order and augmentation.
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
        spec: DatasetSpec,
        split: str,
        data_dir: str | None,
        mesh: Mesh,
        batch_size: int,
        *,
        seed: int = 0,
        augmentation: str = "none",
        crops: int = 1,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        records = open_split(spec.name, split, data_dir)
        self.size = len(records)
        self.steps_per_epoch = self.size // batch_size
        self._batch_size = batch_size
        self._training = sharding.BatchSplit(mesh, batch_size)
        self._testing = sharding.BatchSplit(mesh, self._training.padded)
        self._workers, self._prefetch = worker_count(workers), max(1, prefetch)
        name, rows = f"{spec.name} '{split}'", sharding.local_rows(self._training)
        self._train = TrainBatches(name, records, spec.num_classes, batch_size, rows, seed, augmentation)
        self._test = TestBatches(name, records, spec.num_classes, self._testing.size, rows, crops)
        self._stream: Any = None
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def check_trains(self) -> None:
        """Refuses a training set smaller than one batch."""
        if not self.steps_per_epoch:
            raise UserError(f"{self.size} training images are fewer than one batch of {self._batch_size}")

    def batch(self, position: int) -> Inputs:
        """The training batch at a position; cheap where it follows on the last one that was asked for."""
        if position != self._next:
            self.close()
            self._stream = self._open(self._train, position)
            self._batches = follow(self._stream)
        local = next(self._batches)
        self._next = position + 1
        return self._put(local, self._training)

    def in_order(self) -> Iterator[Inputs]:
        """All images once, in their order, the last batch padded and masked (for exact evaluation)."""
        iterator = self._open(self._test, 0)
        try:
            for local in follow(iterator):
                yield self._put(local, self._testing)
        finally:
            iterator.close()

    def close(self) -> None:
        """Stops the workers; a further `batch` starts them again."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next = None, -1

    def _open(self, source: Any, position: int) -> Any:
        return stream(source, position, min(self._workers, len(source)), self._prefetch)

    def _put(self, local: Batch, split: sharding.BatchSplit) -> Inputs:
        return {**sharding.from_local(local, split), "split": split}


def open_data(
    name: str,
    split: str,
    data_dir: str | None,
    mesh: Mesh,
    batch_size: int,
    *,
    seed: int = 0,
    augmentation: str = "none",
    crops: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> DeviceData | StreamedData:
    """A split as the loop reads it: on the devices where it is small, else streamed from disk.

    Arguments as of `DeviceData` and `StreamedData`.

    Raises:
      UserError: see `binwrn_jax.data.sources.load`.
    """
    spec = dataset_spec(name)
    if not spec.streamed:
        return DeviceData(load(name, split, data_dir), mesh, batch_size, seed)
    return StreamedData(
        spec, split, data_dir, mesh, batch_size, seed=seed, augmentation=augmentation, crops=crops,
        workers=workers, prefetch=prefetch,
    )  # fmt: skip


class StreamedImages:
    """A split for `binwrn_jax.evaluation.measure`: read from disk, cropped as at the end of training.

    Args:
      name: of a streamed data set.
      split: of it.
      data_dir: see `binwrn_jax.data.sources.load`.
      limit: only so many images, the first ones.
      crops: 1 or 25.
      workers: see `StreamedData`.
    """

    def __init__(
        self, name: str, split: str, data_dir: str | None, limit: int | None = None, crops: int = 1,
        workers: int = 0,
    ) -> None:  # fmt: skip
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, not {limit}")
        self._name, self._spec = f"{name} '{split}'", dataset_spec(name)
        self._records = open_split(name, split, data_dir)
        self._size = min(len(self._records), limit or len(self._records))
        self._crops, self._workers = crops, worker_count(workers)

    def __len__(self) -> int:
        return self._size

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `binwrn_jax.evaluation.Images`; with 25 crops a batch has a 25th of the images."""
        size = -(-batch_size // self._crops)
        source = TestBatches(
            self._name, self._records, self._spec.num_classes, size, range(size), self._crops
        )
        iterator = stream(source, 0, min(self._workers, -(-self._size // size)), 2)
        try:
            for position, batch in enumerate(follow(iterator)):
                count = min(size, self._size - position * size)
                yield batch["images"][:count], batch["labels"][:count]
                if count < size or (position + 1) * size == self._size:
                    return
        finally:
            iterator.close()
