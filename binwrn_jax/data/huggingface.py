"""``hf:PATH_OR_NAME``: a data set of Hugging Face's library ``datasets``: one of the Hub, or a local folder.

A folder of Parquet files (or of whatever else the library reads) or one that ``save_to_disk`` wrote needs no
network. A configuration follows after ``@``: ``hf:owner/name@config``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from binwrn_jax.data.dataset import Example
from binwrn_jax.data.failures import one_line
from binwrn_jax.data.source import PARTS, choose_column
from binwrn_jax.errors import UserError, printable, require

_AT_ONCE = 64  # rows, of which the images are in memory together


class HuggingFaceSource:
    """A `binwrn_jax.data.source.Source` of the library ``datasets``.

    Args:
      path: a name of the Hub, or a local folder.
      image_column: which column holds the image; '': the only one of images.
      label_column: which column holds the label; '': the only one of class labels, else ``label``.

    Raises:
      UserError: the library is not installed, the data set cannot be loaded, or it has not one column of
        images and one of labels; the message names those that it has.
    """

    def __init__(self, path: str, image_column: str = "", label_column: str = "") -> None:
        datasets = require("datasets", "reading hf:")
        self.name = f"hf:{path}"
        self.folder = path
        found = _load(datasets, path)
        parts = {PARTS[split.lower()]: table for split, table in found.items() if split.lower() in PARTS}
        if "train" not in parts:
            splits = ", ".join(printable(split) for split in found)
            raise UserError(f"{printable(self.name)} has no split for training; its splits: {splits}")
        features = parts["train"].features
        self._image = _image_column(datasets, features, image_column, self.name)
        self._label = _label_column(datasets, features, label_column, self.name)
        self.class_names, self._numbers = _classes(datasets, parts, self._label, self.name)
        self._tables = {part: _undecoded(datasets, table, self._image) for part, table in parts.items()}
        self.sizes: Mapping[str, int] = {part: len(table) for part, table in self._tables.items()}
        left_out = sorted(set(found) - {split for split in found if split.lower() in PARTS})
        self.notes: Sequence[str] = [
            f"images in the column {printable(self._image)!r}, labels in {printable(self._label)!r}",
            *([f"splits left out: {', '.join(map(printable, left_out))}"] if left_out else []),
        ]
        self.fingerprint = _fingerprint(self.name, self._tables, self._image, self._label)

    def read(self, part: str, indices: Sequence[int]) -> Iterator[Example]:
        """See `Source`."""
        for start in range(0, len(indices), _AT_ONCE):
            rows = self._tables[part][list(indices[start : start + _AT_ONCE])]
            for image, label in zip(rows[self._image], rows[self._label], strict=True):
                yield Example(_content(image), self._numbers.get(label, -1) if label is not None else -1)

    def describe(self, part: str, index: int) -> str:
        """See `Source`."""
        return f"row {index} of the {part} split of {printable(self.name)}"


def _load(datasets: Any, path: str) -> Mapping[str, Any]:
    place, _, config = path.partition("@")
    local = Path(os.path.expanduser(place))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its attempts to connect
    try:
        # What the library prints while it prepares a data set is no result.
        with contextlib.redirect_stdout(sys.stderr):
            if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
                found = datasets.load_from_disk(str(local))
            else:
                found = datasets.load_dataset(str(local) if local.exists() else place, config or None)
    except Exception as error:  # the library raises what it likes
        raise UserError(
            f"cannot load {printable('hf:' + path)} ({one_line(error)}): give a name of the Hub, or a "
            "folder with Parquet files"
        ) from error
    if isinstance(found, datasets.Dataset):
        return {"train": found}
    return dict(found)


def _image_column(datasets: Any, features: Mapping[str, Any], column: str, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    return choose_column(column, found, features, "image", name)


def _label_column(datasets: Any, features: Mapping[str, Any], column: str, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not found:
        found = [key for key in ("label", "labels", "class", "target", "fine_label") if key in features]
    return choose_column(column, found, features, "label", name)


def _classes(
    datasets: Any, parts: Mapping[str, Any], column: str, name: str
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the classes, and the number of each value of the label column."""
    feature = parts["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), {number: number for number in range(len(feature.names))}
    values = {value for table in parts.values() for value in table.unique(column)}
    if not values or not all(isinstance(value, str | int) for value in values):
        raise UserError(
            f"the column {printable(column)!r} of {printable(name)} holds no whole numbers or texts: name "
            "another one with --config.data.label_column"
        )
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    if all(isinstance(value, int) for value in ordered) and ordered[0] >= 0 and ordered[-1] < 100_000:
        ordered = list(range(ordered[-1] + 1))
    return tuple(str(value) for value in ordered), {value: number for number, value in enumerate(ordered)}


def _undecoded(datasets: Any, table: Any, column: str) -> Any:
    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table


def _content(image: Any) -> bytes:
    """The encoded image of a cell."""
    if isinstance(image, dict) and image.get("bytes") is not None:
        return bytes(image["bytes"])
    if isinstance(image, dict) and image.get("path"):
        return Path(image["path"]).read_bytes()
    if isinstance(image, bytes | io.BytesIO):
        return image if isinstance(image, bytes) else image.getvalue()
    return b""  # reported as an image that cannot be decoded


def _fingerprint(name: str, tables: Mapping[str, Any], *columns: str) -> str:
    digest = hashlib.sha256(repr((name, columns)).encode())
    for part, table in tables.items():
        if not table.cache_files:
            return ""  # in memory: nothing tells whether it has changed
        for file in table.cache_files:
            status = os.stat(file["filename"])
            digest.update(f"{part}\0{file['filename']}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
