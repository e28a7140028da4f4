"""The interface of all sources of own images: folders, files of arrays, other libraries' data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from binwrn_jax.data.dataset import Example
from binwrn_jax.errors import UserError, printable

# The parts of a data set, by the names that people give them.
PARTS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


class Source(Protocol):
    """A user's labelled images. It can be pickled, to be sent to worker processes.

    Attributes:
      name: as the user writes it: ``'folder:PATH'``.
      folder: where the images are, for messages.
      class_names: names of the classes, by label.
      sizes: number of images of each part that there is: ``'train'`` and maybe ``'validation'``, ``'test'``.
      fingerprint: changes whenever the images do; '' if that cannot be told.
      notes: facts for the user, one line each.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]
    sizes: Mapping[str, int]
    fingerprint: str
    notes: Sequence[str]

    def read(self, part: str, indices: Sequence[int]) -> Iterator[Example]:
        """Yields images, encoded or uint8 ``[H, W, C]``, and labels, in this order."""
        ...

    def describe(self, part: str, index: int) -> str:
        """Words that name an image in a message, such as the path of its file."""
        ...


def choose_column(
    chosen: str, found: Sequence[str], columns: Iterable[str], what: str, name: str, noun: str = "column"
) -> str:
    """The column that the user chose, else the only one that was found.

    Args:
      chosen: its name; '' if the user chose none.
      found: columns of the right type.
      columns: all columns.
      what: ``'image'`` or ``'label'``.
      name: of the data set, for messages.
      noun: the word for a column in messages.

    Raises:
      UserError: there is no such column, or not exactly one was found.
    """
    columns = list(columns)
    if chosen and chosen in columns:
        return chosen
    if not chosen and len(found) == 1:
        return found[0]
    why = f"no {noun} {printable(chosen)!r}" if chosen else f"{len(found)} {noun}s of {what}s"
    raise UserError(
        f"{printable(name)} has {why}: name one with --config.data.{what}_column; its {noun}s: "
        f"{', '.join(map(printable, columns))}"
    )
