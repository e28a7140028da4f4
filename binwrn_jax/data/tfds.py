"""The data sets of the catalogue, as TFDS has prepared them.

Where the data come from: the ``data_dir`` argument, else the environment variable TFDS_DATA_DIR, else
``~/tensorflow_datasets``. What is not prepared there is downloaded and prepared by TFDS at first use, as
ArrayRecord. ``digits`` needs no download and always lives in the cache, ``~/.cache/binwrn_jax/tfds`` (or
below XDG_CACHE_HOME). Prepared TFRecord folders are read as well.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from binwrn_jax.data import jpeg
from binwrn_jax.data.builder import check_features, class_names, data_root, open_builder
from binwrn_jax.data.dataset import Arrays, DatasetInfo, Example
from binwrn_jax.data.failures import DamagedError, MismatchError, naming
from binwrn_jax.data.loading import LoadingMessages, count_to_load
from binwrn_jax.data.prepare import prepare
from binwrn_jax.data.records import SerializedRecords, check_counts, open_records, parse
from binwrn_jax.data.splits import split_size

RECORDS_PER_READ = 4096

_log = logging.getLogger(__name__)


class TfdsDataset:
    """A `Dataset` of the catalogue, prepared at first use of its images.

    Args:
      facts: of the catalogue.
      data_dir: folder of prepared TFDS data sets; default as described at the top of this module. ``digits``
        ignores it.
      manual_dir: folder of the files that were downloaded by hand; default ``<data_dir>/downloads/manual``.
    """

    def __init__(
        self, facts: DatasetInfo, data_dir: str | None = None, manual_dir: str | None = None
    ) -> None:
        self._facts, self._root, self._manual_dir = facts, data_root(facts, data_dir), manual_dir
        self._told = False

    @property
    def info(self) -> DatasetInfo:
        """The facts of the catalogue and the class names; never downloads or prepares anything.

        The numbers of images are those of the whole data set, see `counts`. The names of CIFAR-100's classes
        are known once it is prepared.

        Raises:
          UserError: the prepared folder cannot be read.
        """
        builder = self.__dict__.get("builder") or open_builder(self._facts, self._root)
        return dataclasses.replace(self._facts, class_names=class_names(self._facts, builder))

    def is_prepared(self) -> bool:
        """Whether the images are at hand: the data set is prepared, or needs no download.

        Raises:
          UserError: the prepared folder cannot be read.
        """
        return self._facts.name == "digits" or open_builder(self._facts, self._root).data_path.exists()

    @functools.cached_property
    def builder(self) -> Any:
        """The TFDS builder; its data are prepared first if they are not on disk.

        Raises:
          UserError: what has to be downloaded by hand and where to put it; data that cannot be downloaded; a
            prepared folder that cannot be read or does not agree with the catalogue.
        """
        builder = open_builder(self._facts, self._root)
        if not builder.data_path.exists():
            builder = prepare(self._facts, self._root, self._manual_dir)
        check_features(self._facts, builder)
        return builder

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of images in each split of the prepared folder, as it says itself."""
        return {split: int(info.num_examples) for split, info in self.builder.info.splits.items()}

    @property
    def folder(self) -> str:
        """The prepared folder."""
        return str(self.builder.data_dir)

    def records(self, split: str) -> TfdsRecords:
        """See `Dataset`. Offsets of TFRecords are kept on disk, see `binwrn_jax.data.records`."""
        split_size(self._facts.name, self.counts, split)
        self._tell_of_missing_images()
        with naming(self._words(split, 0), self.folder):
            serialized = open_records(self.builder, split, cache_offsets=True)
        return TfdsRecords(self._facts, split, self.folder, serialized)

    def _tell_of_missing_images(self) -> None:
        """Warns once that the test error of a partly prepared data set is not comparable."""
        name, whole = self._facts.name, {} if self._told else self._facts.splits
        self._told = True
        if any(self.counts.get(split, 0) < whole[split] for split in whole):
            parts = ", ".join(f"{split} {self.counts.get(split, 0)} of {whole[split]}" for split in whole)
            _log.info("%s is a part of %s (%s): the test error means nothing", self.folder, name, parts)

    def arrays(self, split: str, limit: int | None = None) -> Arrays:
        """See `Dataset`.

        The order of the records is the same every time: TFDS shuffled them, by a hash of their keys, when it
        prepared them.
        """
        facts = self._facts
        count = count_to_load(facts.name, self.counts, split, limit, facts.image_shape)
        with naming(self._words(split, 0), self.folder):
            serialized = open_records(self.builder, split)
            if len(serialized) < count:
                raise MismatchError(f"{len(serialized)} records, but dataset_info.json says {count}")
        images = np.empty((count, *facts.image_shape), np.uint8)
        labels = np.empty(count, np.int32)
        messages = LoadingMessages(f"{facts.name} {split}", count)
        for index, record in enumerate(_read_first(serialized, count, self._words(split, 0), self.folder)):
            with naming(self._words(split, index), self.folder):
                images[index], labels[index] = decode_record(record, facts)
            messages.done(index + 1)
        return Arrays(images, labels, class_names(facts, self.builder))

    def manifest(self) -> None:
        """See `Dataset`: prepared data have a version, which their folder has in its name."""

    def check(self, decode: bool = False) -> None:
        """Compares the files with what ``dataset_info.json`` says of them.

        Args:
          decode: also decode every image.

        Raises:
          UserError: a file has another number of records, ends within one, or an image cannot be decoded; the
            message names the file or record.
        """
        for split in self.builder.info.splits:
            with naming(f"{self._facts.name} '{split}' in {self.folder}", self.folder):
                check_counts(self.builder, split)
            if not decode:
                continue
            serialized = open_records(self.builder, split)
            records = _read_first(serialized, len(serialized), self._words(split, 0), self.folder)
            for index, record in enumerate(records):
                with naming(self._words(split, index), self.folder):
                    decode_record(record, self._facts)

    def _words(self, split: str, index: int) -> str:
        return f"{self._facts.name} '{split}' near record {index} in {self.folder}"


class TfdsRecords:
    """`Records` of a split of a prepared data set.

    Args:
      facts: of the catalogue.
      split: for messages.
      folder: for messages.
      serialized: the records.
      features: names of the features that hold the image and the label.
    """

    def __init__(
        self, facts: DatasetInfo, split: str, folder: str, serialized: SerializedRecords,
        features: tuple[str, str] = ("image", "label"),
    ) -> None:  # fmt: skip
        self._facts, self._split, self.folder = facts, split, folder
        self.serialized, self._features = serialized, features

    def __len__(self) -> int:
        return len(self.serialized)

    def read(self, indices: Sequence[int]) -> Iterator[Example]:
        """See `Records`; all are read before the first one is given."""
        first = indices[0] if len(indices) else 0
        with naming(self.describe(first), self.folder):
            records = self.serialized.read(indices)
        for index, record in zip(indices, records, strict=True):
            with naming(self.describe(index), self.folder):
                encoded, label = parse(record, *self._features)
                check_label(label, self._facts)
            yield Example(encoded, label)

    def describe(self, index: int) -> str:
        """See `Records`."""
        return f"{self._facts.name} '{self._split}' near record {index} in {self.folder}"


def check_label(label: int, facts: DatasetInfo) -> None:
    """Refuses a label outside the classes, which would be counted as no one's.

    Raises:
      MismatchError: it is negative, or there are not as many classes.
    """
    if not 0 <= label < facts.num_classes:
        raise MismatchError(f"label {label}, but {facts.name} has {facts.num_classes} classes")


def decode_record(record: bytes, facts: DatasetInfo) -> tuple[UInt8[np.ndarray, "H W C"], int]:
    """The image, uint8 ``[H, W, C]``, and the label of a serialized tf.train.Example.

    TFDS's own features are not used: they are slower, check neither shape nor label, and need OpenCV or warn
    that it is missing. For streamed data sets the image is the central crop.

    Raises:
      DamagedError: it cannot be decoded.
      MismatchError: an image of another shape, or a label outside the classes.
    """
    import PIL.Image

    encoded, label = parse(record)
    check_label(label, facts)
    try:
        if facts.streamed:
            return jpeg.decode(encoded, [jpeg.center_box(*jpeg.image_size(encoded))])[0], label
        image = np.asarray(PIL.Image.open(io.BytesIO(encoded), formats=("PNG",)))
    except Exception as error:  # decoders raise a dozen types, all for damaged bytes
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    if image.ndim == 2:  # PIL gives grey images no channel axis
        image = image[..., None]
    if image.shape != facts.image_shape:
        raise MismatchError(f"image of shape {image.shape}, but {facts.name} has {facts.image_shape}")
    return image, label


def _read_first(records: SerializedRecords, count: int, what: str, folder: str) -> Iterator[bytes]:
    """Yields the first ``count`` records."""
    for start in range(0, count, RECORDS_PER_READ):
        with naming(what.replace("record 0", f"record {start}"), folder):
            part = records.read(range(start, min(start + RECORDS_PER_READ, count)))
        yield from part
