"""Own images as a `Dataset`: surveyed, divided into splits, resized by one rule.

dataset = open_own(FolderSource("flowers"), ImageOptions(size=32))
dataset.info.splits                      # {'train': 1600, 'validation': 200, 'test': 200}
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from binwrn_jax.data.dataset import Arrays, DatasetInfo, Example, ImageOptions
from binwrn_jax.data.division import RULE, Division, divide, manifest_digest
from binwrn_jax.data.failures import one_line
from binwrn_jax.data.images import RESIZE, cut, read_picture
from binwrn_jax.data.loading import LoadingMessages, count_to_load
from binwrn_jax.data.source import Source
from binwrn_jax.data.splits import parse_split
from binwrn_jax.data.survey import Survey, survey
from binwrn_jax.errors import UserError, printable

log = logging.getLogger(__name__)

STREAM = ("auto", "yes", "no")
MOST_BYTES_ON_DEVICES = 1e9  # of all splits as pixels; larger data sets are streamed by default
_MOST_NAMED = 3  # broken images in a message


class OwnDataset:
    """A `Dataset` of a user's images.

    Args:
      source: where the images are.
      options: how they are read.

    Attributes:
      surveys: facts about each image, by part.
      unlabelled: parts that are left out, since none of their images has a label.
      division: which image is in which split.

    Raises:
      UserError: images that cannot be read or divided; options that do not fit them.
    """

    def __init__(self, source: Source, options: ImageOptions) -> None:
        _check_options(options)
        self.source, self.options = source, options
        found = survey(source)
        # Data sets of contests come with test images whose labels are kept secret: -1.
        self.unlabelled = [part for part, one in found.items() if part != "train" and (one.labels < 0).all()]
        self.surveys: dict[str, Survey] = {part: found[part] for part in found if part not in self.unlabelled}
        _check_labels(source, self.surveys)
        self.division: Division = divide(self.surveys, source.class_names)
        self._warn_of_overlaps()

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """See `Dataset`.

        Raises:
          UserError: the images have several sizes and no size is given; a rule that does not fit them.
        """
        splits = {split: len(indices) for split, (_, indices) in self.division.items()}
        shape = self._image_shape()
        streamed = self.options.stream == "yes" or (
            self.options.stream == "auto" and sum(splits.values()) * math.prod(shape) > MOST_BYTES_ON_DEVICES
        )
        return DatasetInfo(
            name=self.source.name,
            image_shape=shape,
            num_classes=len(self.source.class_names),
            splits=splits,
            validation_split="validation",
            streamed=streamed,
            resize=self.options.resize,
            class_names=self.source.class_names,
        )

    def manifest(self) -> dict[str, Any]:
        """See `Dataset`: the rule, the numbers, a hash of the division, and the images left out."""
        return {
            "dataset": self.source.name,
            "splits": dict(self.info.splits),
            "rule": self.rule,
            "sha256": manifest_digest(self.division, self.surveys),
            "broken": [self.source.describe(part, index) for part, index in self.broken],
        }

    @property
    def rule(self) -> str:
        """How the splits were made, in words."""
        made = ["train", *(split for split in ("validation", "test") if split in self.surveys)]
        if len(made) == len(self.division):
            return "the splits are those of the source"
        return RULE if len(made) == 1 else f"{' and '.join(made)} are those of the source; of train, {RULE}"

    @property
    def broken(self) -> list[tuple[str, int]]:
        """The part and index of each image that cannot be decoded."""
        return [(part, index) for part, one in self.surveys.items() for index in sorted(one.broken)]

    def arrays(self, split: str, limit: int | None = None) -> Arrays:
        """See `Dataset`."""
        count = count_to_load(self.source.name, self.info.splits, split, limit, self.info.image_shape)
        records = self.records(split)
        images = np.empty((count, *self.info.image_shape), np.uint8)
        labels = np.empty(count, np.int32)
        messages = LoadingMessages(f"{self.source.name} {split}", count)

        def fill(row: int, example: Example) -> None:
            with records.naming(row):
                cut(example.image, self.info.image_shape, self.info.resize, None, images[row : row + 1])
            labels[row] = example.label

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoders let other threads run
            for first in range(0, count, 256):
                rows = range(first, min(first + 256, count))
                list(pool.map(fill, rows, records.read(rows)))
                messages.done(rows.stop)
        return Arrays(images, labels, self.source.class_names)

    def records(self, split: str) -> OwnRecords:
        """See `Dataset`.

        Raises:
          UserError: also if images cannot be decoded, unless `ImageOptions.skip_broken`.
        """
        self._check_broken()
        chosen = []
        for part in parse_split(self.source.name, self.info.splits, split):
            place, indices = self.division[part.split]
            chosen.append((place, indices[part.start : part.stop]))
        return OwnRecords(self.source, self.info, chosen)

    def _warn_of_overlaps(self) -> None:
        """Warns how many images of other splits are training images too, and so measure nothing."""
        contents = {}
        for split, (part, indices) in self.division.items():
            contents[split] = {row.tobytes() for row in self.surveys[part].digests[indices]}
        for split in sorted(contents.keys() - {"train"}):
            if both := len(contents[split] & contents["train"]):
                log.warning("%s: %d %s images are training images, too", self.source.name, both, split)

    def _check_broken(self) -> None:
        broken = self.broken
        if not broken or self.options.skip_broken:
            return
        total = sum(len(one.labels) for one in self.surveys.values())
        named = "; ".join(
            f"{self.source.describe(part, index)} ({self.surveys[part].broken[index]})"
            for part, index in broken[:_MOST_NAMED]
        )
        more = f"; and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
        raise UserError(
            f"{len(broken)} of {total:,} images cannot be decoded: {named}{more}. Replace or remove them, "
            f"or leave them out with --config.data.skip_broken=True; `{self._command()}` "
            "lists them"
        )

    def _command(self) -> str:
        """What describes these images, as it can be typed."""
        columns = {"image": self.options.image_column, "label": self.options.label_column}
        given = [f"--{kind}-column={name}" for kind, name in columns.items() if name]
        return shlex.join(["binwrn", "data", self.source.name, *given])

    def _image_shape(self) -> tuple[int, int, int]:
        whole = [(one, one.whole) for one in self.surveys.values()]
        sizes = np.unique(np.concatenate([one.sizes[indices] for one, indices in whole]), axis=0)
        grey = np.concatenate([one.grey[indices] for one, indices in whole])
        channels = self.options.channels or (1 if grey.all() else 3)
        if self.options.size:
            return self.options.size, self.options.size, channels
        if len(sizes) > 1:
            low, high = sizes.min(0), sizes.max(0)
            raise UserError(
                f"the images of {self.source.name} are {low[0]} to {high[0]} pixels high and {low[1]} to "
                f"{high[1]} wide: give the size that the network sees, for example --config.data.size=32"
            )
        return int(sizes[0, 0]), int(sizes[0, 1]), channels


class OwnRecords:
    """`Records` of a split of own images.

    Args:
      source: where they are.
      info: of the data set.
      chosen: parts of the source and int64 indices into them, one after the other.
    """

    def __init__(self, source: Source, info: DatasetInfo, chosen: Sequence[tuple[str, np.ndarray]]) -> None:
        self._source, self._info = source, info
        self._chosen = [(part, index) for part, indices in chosen for index in indices.tolist()]
        self.folder = source.folder

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: Sequence[int]) -> Iterator[Example]:
        """See `Records`; images are arrays uint8 ``[H, W, C]``, or JPEGs by the rule ``center_crop``."""
        for part, run in itertools.groupby(indices, lambda index: self._chosen[index][0]):
            together = list(run)
            examples = self._source.read(part, [self._chosen[index][1] for index in together])
            for index in together:
                with self.naming(index):
                    image, label = next(examples)
                    picture = to_picture(image, self._info)
                yield Example(picture, label)

    def describe(self, index: int) -> str:
        """See `Records`."""
        return self._source.describe(*self._chosen[index])

    def naming(self, index: int) -> _Naming:
        """A context that turns any error into one line that names the image."""
        return _Naming(self, index)


class _Naming:
    def __init__(self, records: OwnRecords, index: int) -> None:
        self._records, self._index = records, index

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError | ImportError):
            return
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(
            f"cannot read {self._records.describe(self._index)} ({reason}): it has changed since the "
            "images were looked through, or may not be read; start again"
        ) from error


def to_picture(image: bytes | np.ndarray, info: DatasetInfo) -> bytes | np.ndarray:
    """A stored image in the channels of the data set, for `binwrn_jax.data.images.cut`.

    Raises:
      ValueError: an array of other channels; Pillow raises other errors.
    """
    channels = info.image_shape[2]
    if isinstance(image, bytes):
        return read_picture(image, channels, info.resize)
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (image.shape[2], channels) == (3, 1):
        import PIL.Image

        return np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]
    raise ValueError(f"{image.shape[2]} channels cannot become {channels}")


def _check_options(options: ImageOptions) -> None:
    if options.size < 0 or options.size > 4096:
        raise UserError(f"data.size is {options.size}: it must be from 1 to 4096, or 0 for the images' own")
    if options.channels not in (0, 1, 3):
        raise UserError(
            f"data.channels is {options.channels}: it must be 1 (grey), 3 (RGB) or 0 (as they are)"
        )
    for field, value, choices in (("resize", options.resize, RESIZE), ("stream", options.stream, STREAM)):
        if value not in choices:
            raise UserError(f"unknown data.{field} {value!r}: choose one of {', '.join(choices)}")


def _check_labels(source: Source, surveys: Mapping[str, Survey]) -> None:
    for part, one in surveys.items():
        outside = np.flatnonzero((one.labels < 0) | (one.labels >= len(source.class_names)))
        if len(outside):
            index = int(outside[0])
            raise UserError(
                f"{source.describe(part, index)} has the label {one.labels[index]}, but there are "
                f"{len(source.class_names)} classes, from 0 on: correct the labels or leave that part out "
                f"({printable(part)})"
            )
