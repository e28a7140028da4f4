"""Divides own images into training, validation and test images by a hash of their content.

The rule, for each split that the user did not make: the images of each class that the user gave for training
are sorted by the SHA-256 of their stored bytes; the first tenth of them (rounded, at least one) is for
testing, the next tenth for validation, the rest for training. Images with the same bytes count once and stay
together. So the division depends on the images alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from binwrn_jax.data.survey import Survey
from binwrn_jax.errors import UserError, printable

RULE = (
    "a tenth of the images of each class, those with the lowest SHA-256 of their bytes, is for testing, "
    "the next tenth for validation"
)

Division = dict[str, tuple[str, np.ndarray]]  # split -> (part, int64 indices into it)


def divide(surveys: Mapping[str, Survey], class_names: tuple[str, ...]) -> Division:
    """The split that each whole image belongs to.

    Args:
      surveys: of the parts that the user has made, ``'train'`` among them.
      class_names: for messages.

    Returns:
      For each of 'train', 'validation', 'test' the part and the indices into it, sorted by the hash, so that
      the first images are of all classes.

    Raises:
      UserError: a class has too few different images to be divided.
    """
    found: Division = {part: (part, _by_digest(one, one.whole)) for part, one in surveys.items()}
    wanted = [split for split in ("test", "validation") if split not in surveys]
    if not wanted:
        return found
    train = surveys["train"]
    split_of = np.full(len(train.labels), "train", dtype="U10")
    for label, name in enumerate(class_names):
        mine = train.whole[train.labels[train.whole] == label]
        different = np.unique(train.digests[mine], axis=0)  # sorted
        share = max(1, round(len(different) / 10))
        if len(different) < len(wanted) + 1:
            raise UserError(
                f"the class {printable(name)!r} has {len(different)} different images: it needs at least "
                f"{len(wanted) + 1} to be divided; add some, or make folders train, val and test"
            )
        for number, split in enumerate(wanted):
            chosen = {row.tobytes() for row in different[number * share : (number + 1) * share]}
            for index in mine:
                if train.digests[index].tobytes() in chosen:
                    split_of[index] = split
    for split in ("train", *wanted):
        indices = train.whole[split_of[train.whole] == split]
        found[split] = ("train", _by_digest(train, indices))
    return found


def manifest_digest(division: Division, surveys: Mapping[str, Survey]) -> str:
    """A hash of which images are in which split: it changes when the images do."""
    digest = hashlib.sha256()
    for split in sorted(division):
        part, indices = division[split]
        digest.update(split.encode())
        digest.update(surveys[part].digests[indices].tobytes())
        digest.update(surveys[part].labels[indices].astype("<i4").tobytes())
    return digest.hexdigest()


def _by_digest(one: Survey, indices: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    keys = [one.digests[indices, column] for column in reversed(range(one.digests.shape[1]))]
    return indices[np.lexsort(keys)] if len(indices) else indices
