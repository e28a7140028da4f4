"""Reads every own image once before its use: hash of the content, size, label, and whether it decodes.

The result is kept in the user's cache and read again as long as the images are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from binwrn_jax.data.cache_file import read_cached, write_cached
from binwrn_jax.data.dataset import Example
from binwrn_jax.data.failures import one_line
from binwrn_jax.data.images import measure_picture
from binwrn_jax.data.loading import LoadingMessages
from binwrn_jax.data.source import Source
from binwrn_jax.errors import UserError, printable
from binwrn_jax.system.cache import user_cache

_VERSION = "1"  # of what is kept
_FIELDS = ("labels", "digests", "sizes", "grey")
_AT_ONCE = 256
_DIGEST = 16  # bytes of a SHA-256: enough to tell images apart


@dataclass(frozen=True)
class Survey:
    """Facts about the N images of a part.

    Attributes:
      labels: int32 ``[N]``.
      digests: uint8 ``[N, 16]``, the beginning of the SHA-256 of each image's stored bytes.
      sizes: int32 ``[N, 2]``, height and width, upright; 0 where it cannot be decoded.
      grey: bool ``[N]``.
      broken: reasons of the images that cannot be decoded, by index.
    """

    labels: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    grey: np.ndarray
    broken: dict[int, str]

    @property
    def whole(self) -> np.ndarray:
        """Indices of the images that can be decoded, int64."""
        return np.array([i for i in range(len(self.labels)) if i not in self.broken], np.int64)


def survey(source: Source) -> dict[str, Survey]:
    """Reads all images of a source, or the result that an earlier call kept.

    Raises:
      UserError: a file cannot be read at all; broken images are no error here.
    """
    key = hashlib.sha256(f"{_VERSION}\0{source.name}\0{source.fingerprint}".encode(errors="surrogateescape"))
    place = user_cache("images") / f"{key.hexdigest()[:32]}.npz"
    if source.fingerprint and (kept := _read(place, source)):
        return kept
    found = {part: _survey_part(source, part) for part in source.sizes}
    if source.fingerprint:
        arrays: dict[str, np.ndarray] = {}
        for part, one in found.items():
            arrays |= {f"{part}/{field}": getattr(one, field) for field in _FIELDS}
            arrays[f"{part}/broken"] = np.frombuffer(json.dumps(one.broken).encode(), np.uint8)
        write_cached([place], arrays)
    return found


def _read(place: Path, source: Source) -> dict[str, Survey] | None:
    arrays = read_cached(place)
    if arrays is None:
        return None
    try:
        found = {}
        for part, size in source.sizes.items():
            broken = json.loads(arrays[f"{part}/broken"].tobytes())
            labels, digests, sizes, grey = (arrays[f"{part}/{field}"] for field in _FIELDS)
            reasons = {int(index): str(reason) for index, reason in broken.items()}
            found[part] = Survey(labels, digests, sizes, grey, reasons)
            if len(found[part].labels) != size:
                return None
    except (KeyError, ValueError, AttributeError):
        return None
    return found


def _survey_part(source: Source, part: str) -> Survey:
    count = source.sizes[part]
    labels, digests = np.empty(count, np.int32), np.empty((count, _DIGEST), np.uint8)
    sizes, grey = np.zeros((count, 2), np.int32), np.zeros(count, bool)
    broken: dict[int, str] = {}
    messages = LoadingMessages(f"{source.name} {part}, for a first look", count)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoders let other threads run
        for start in range(0, count, _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, count))
            for index, (label, digest, size, is_grey, reason) in zip(
                indices, pool.map(_look, _readable(source, part, indices)), strict=True
            ):
                labels[index], digests[index] = label, np.frombuffer(digest, np.uint8)
                sizes[index], grey[index] = size, is_grey
                if reason:
                    broken[index] = reason
            messages.done(indices.stop)
    return Survey(labels, digests, sizes, grey, broken)


def _readable(source: Source, part: str, indices: Iterable[int]) -> Iterator[Example]:
    """The examples; a file that cannot be read at all ends it with one line."""
    indices = list(indices)
    examples = source.read(part, indices)
    for index in indices:
        try:
            yield next(examples)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise UserError(
                f"cannot read {source.describe(part, index)} ({reason}): see to its permissions or its disk"
            ) from error


def _look(example: Example) -> tuple[int, bytes, tuple[int, int], bool, str]:
    image, label = example
    if isinstance(image, np.ndarray):
        digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()[:_DIGEST]
        return label, digest, (image.shape[0], image.shape[1]), image.shape[2] == 1, ""
    digest = hashlib.sha256(image).digest()[:_DIGEST]
    try:
        size, grey = measure_picture(image)
    except Exception as error:  # decoders raise a dozen types
        return label, digest, (0, 0), False, _reason(error)
    return label, digest, size, grey, ""


def _reason(error: Exception) -> str:
    """Pillow's message names its buffer where it knows no format."""
    import PIL

    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image that Pillow reads"
    return printable(one_line(error))
