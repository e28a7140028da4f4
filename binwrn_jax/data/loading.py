"""Loading a split into memory: the number of images, and messages while it takes long."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping

from binwrn_jax.data.splits import split_size
from binwrn_jax.errors import UserError

log = logging.getLogger(__name__)

_MOST_BYTES = 16e9  # of a split in memory: ImageNet32 has 4 GB
_SECONDS_BETWEEN_MESSAGES = 2.0


def count_to_load(
    name: str, sizes: Mapping[str, int], split: str, limit: int | None, image_shape: tuple[int, ...]
) -> int:
    """The number of images to load into memory.

    Args:
      name: of the data set, for messages.
      sizes: number of images of each split.
      split: see `binwrn_jax.data.splits.parse_split`.
      limit: at most so many; None for all.
      image_shape: of one image.

    Raises:
      UserError: no such split, nothing in it, a limit below 1, or too many images for memory.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    count = split_size(name, sizes, split)
    count = count if limit is None else min(count, limit)
    if count * math.prod(image_shape) > _MOST_BYTES:
        raise UserError(f"{count} images of {name} are too many for memory: give a limit")
    return count


class LoadingMessages:
    """Prints the progress of loading after two seconds.

    Args:
      what: what is loaded, for the messages.
      count: images in all.
    """

    def __init__(self, what: str, count: int) -> None:
        self._what, self._count = what, count
        self._start = self._said = time.monotonic()

    def done(self, images: int) -> None:
        """Notes the number of images loaded so far."""
        now = time.monotonic()
        if images == self._count and now - self._start > _SECONDS_BETWEEN_MESSAGES:
            log.info("loaded %s: %d images in %.1f s", self._what, images, now - self._start)
        elif now - self._said > _SECONDS_BETWEEN_MESSAGES:
            self._said = now
            log.info("loading %s: %d of %d images", self._what, images, self._count)
