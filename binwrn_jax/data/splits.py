"""Splits, and slices and sums of them, in the notation of TFDS: ``'train[:1000]'``, ``'train+extra'``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from binwrn_jax.errors import UserError


class Slice(NamedTuple):
    """The examples ``start`` to ``stop - 1`` of a split."""

    split: str
    start: int
    stop: int


def parse_split(name: str, sizes: Mapping[str, int], split: str) -> list[Slice]:
    """The parts of splits that a description such as ``'train[:10%]+extra'`` names.

    Args:
      name: of the data set, for messages.
      sizes: number of examples of each split.
      split: the description, see `tensorflow_datasets.core.ReadInstruction`.

    Raises:
      UserError: there is no such split, or there is nothing in it.
    """
    slices = [Slice(split, 0, sizes[split])] if split in sizes else _parse(name, sizes, split)
    if not any(part.stop > part.start for part in slices):
        raise UserError(f"split '{split}' of {name} has no examples")
    return slices


def split_size(name: str, sizes: Mapping[str, int], split: str) -> int:
    """The number of examples in a split. Arguments and errors as of `parse_split`."""
    return sum(part.stop - part.start for part in parse_split(name, sizes, split))


def _parse(name: str, sizes: Mapping[str, int], split: str) -> list[Slice]:
    import tensorflow_datasets as tfds

    files = tfds.core.ShardedFileTemplate(data_dir="", dataset_name="any", filetype_suffix="array_record")
    known = tfds.core.SplitDict([tfds.core.SplitInfo(s, [size], 0, files) for s, size in sizes.items()])
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    except Exception as error:  # KeyError, ValueError, AssertionError: it depends on what is wrong with it
        raise UserError(
            f"{name} has no split '{split}'; available: {', '.join(sizes)}, sums of them, and slices such as "
            "'train[:1000]'"
        ) from error
    slices = []
    for part in parts:
        start, stop = part.from_ or 0, sizes[part.splitname] if part.to is None else part.to
        slices.append(Slice(part.splitname, start, max(start, stop)))  # a slice such as [5:1] is empty
    return slices
