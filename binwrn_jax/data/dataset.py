"""The nouns of this room: facts about a data set, its images in memory, its records on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set.

    Attributes:
      name: as users write it: ``'cifar10'``, ``'folder:PATH'``.
      image_shape: ``(height, width, channels)`` of the images that a network sees.
      num_classes: number of classes.
      splits: number of images of each split.
      train_split: the split to train on.
      test_split: the split whose error is reported.
      validation_split: the split that may choose between checkpoints; '' if there is none.
      streamed: the images are decoded from disk as they are needed, else they are kept on the devices.
      resize: the rule by which an image of another size gets `image_shape`, a key of
        `binwrn_jax.data.images.RESIZE`, described in docs/packed-format.md.
      class_names: ``num_classes`` names; empty where only the files on disk tell them, see `open_dataset`.
      tfds_name: name of the TFDS builder and its config, such as ``'imagenet_resized/32x32'``; '' if there
        is none.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: Mapping[str, int]
    train_split: str = "train"
    test_split: str = "test"
    validation_split: str = ""
    streamed: bool = False
    resize: str = "bilinear"
    class_names: tuple[str, ...] = ()
    tfds_name: str = ""


class Arrays(NamedTuple):
    """A split in memory, in record order."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N], 0 <= label < num_classes
    class_names: tuple[str, ...]  # num_classes names


class Example(NamedTuple):
    """One labelled image."""

    image: bytes | np.ndarray  # an encoded image file, or uint8 [H, W, C]
    label: int  # 0 <= label < num_classes


class Records(Protocol):
    """Random access to the examples of a split. It can be pickled, to be sent to worker processes.

    Attributes:
      folder: where they are, for messages.
    """

    folder: str

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Iterator[Example]:
        """Yields the examples at these indices, in this order.

        Raises:
          UserError: an example cannot be read; the message names it.
        """
        ...

    def describe(self, index: int) -> str:
        """Words that name an example in a message: ``"imagenet2012 'train' near record 5 in FOLDER"``."""
        ...


class Dataset(Protocol):
    """A data set that is at hand, see `binwrn_jax.data.open.open_dataset`."""

    @property
    def info(self) -> DatasetInfo:
        """The facts, class names included."""
        ...

    def arrays(self, split: str, limit: int | None = None) -> Arrays:
        """Loads a split, or its first ``limit`` images, into memory.

        Args:
          split: a split, a slice or a sum of them: ``'train'``, ``'train[:1000]'``, ``'train+extra'``.
          limit: read only this many examples, the first ones.

        Raises:
          UserError: no such split, nothing in it, too many images for memory, unreadable or damaged files.
        """
        ...

    def records(self, split: str) -> Records:
        """Opens a split for random access. Arguments and errors as of `arrays`."""
        ...

    def manifest(self) -> Mapping[str, Any] | None:
        """What a run keeps about the images, as JSON, to notice that they change; None where they cannot."""
        ...


@dataclass(frozen=True)
class ImageOptions:
    """How own images are read; the data sets of the catalogue take none of these.

    Attributes:
      size: side of the square images that a network sees; 0: the size that all images have.
      channels: 1 (grey) or 3 (RGB); 0: grey if all images are grey.
      resize: the rule for images of another size, a key of `binwrn_jax.data.images.RESIZE`.
      stream: ``'yes'``, ``'no'``, or ``'auto'``: decode from disk as needed what is over 1 GB in memory.
      skip_broken: leave out what cannot be decoded, instead of refusing the data set.
      image_column: of ``hf:`` and ``tfds:``: which feature holds the image; '': the only one.
      label_column: of ``hf:`` and ``tfds:``: which feature holds the label; '': the only one.
    """

    size: int = 0
    channels: int = 0
    resize: str = "bilinear"
    stream: str = "auto"
    skip_broken: bool = False
    image_column: str = ""
    label_column: str = ""

    @classmethod
    def of_model(cls, name: str, model: Mapping[str, Any], **others: Any) -> ImageOptions:
        """The options by which own images are read as a model takes them.

        Args:
          name: of the images; arrays keep their own size.
          model: description with ``image_shape`` and perhaps ``input``.
          others: further fields.
        """
        height, width, channels = model["image_shape"]
        return cls(
            size=0 if name.startswith("npz:") or height != width else height,
            channels=channels if channels in (1, 3) else 0,
            resize=(model.get("input") or {}).get("resize", "bilinear"),
            **others,
        )
