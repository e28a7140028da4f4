"""``tfds:NAME``: a data set of any name that TFDS has prepared, found below the data folder or by its path.

tfds:my_flowers            DIR/my_flowers/1.0.0, the newest version; also NAME/CONFIG and NAME:VERSION
tfds:/data/my_flowers/1.0.0
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from binwrn_jax.data.builder import root_folder, unreadable_folder
from binwrn_jax.data.dataset import Example
from binwrn_jax.data.failures import is_remote, naming
from binwrn_jax.data.records import SerializedRecords, open_records, parse
from binwrn_jax.data.source import PARTS, choose_column
from binwrn_jax.errors import UserError, printable


class TfdsSource:
    """A `binwrn_jax.data.source.Source` of a folder that TFDS has prepared.

    Args:
      name: of the data set, or the path of its folder.
      data_dir: see `binwrn_jax.data.builder.root_folder`.
      image_column: which feature holds the image; '': the only one of images.
      label_column: which feature holds the label; '': the only one of class labels.

    Raises:
      UserError: there is no such folder, it cannot be read, or it has not one image and one label.
    """

    def __init__(
        self, name: str, data_dir: str | None, image_column: str = "", label_column: str = ""
    ) -> None:
        import tensorflow_datasets as tfds

        self.name = f"tfds:{name}"
        builder = _open(name, root_folder(data_dir))
        self.folder = str(builder.data_dir)
        features = dict(builder.info.features)
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        self._features = (
            choose_column(image_column, images, features, "image", self.name, "feature"),
            choose_column(label_column, labels, features, "label", self.name, "feature"),
        )
        self.class_names = tuple(features[self._features[1]].names)
        splits = {PARTS[split]: split for split in builder.info.splits if split in PARTS}
        if "train" not in splits:
            there = ", ".join(builder.info.splits) or "none"
            raise UserError(f"{self.name} has no split for training; its splits: {there}")
        self._records: dict[str, SerializedRecords] = {}
        for part, split in splits.items():
            with naming(f"{self.name} '{split}' in {self.folder}", self.folder):
                self._records[part] = open_records(builder, split, cache_offsets=True)
        self.sizes: Mapping[str, int] = {part: len(records) for part, records in self._records.items()}
        self.notes: Sequence[str] = [f"prepared by TFDS in {self.folder}: {', '.join(splits.values())}"]
        self.fingerprint = _fingerprint(builder, list(splits.values()), self._features)

    def read(self, part: str, indices: Sequence[int]) -> Iterator[Example]:
        """See `Source`."""
        first = indices[0] if len(indices) else 0
        with naming(self.describe(part, first), self.folder):
            records = self._records[part].read(indices)
        for index, record in zip(indices, records, strict=True):
            with naming(self.describe(part, index), self.folder):
                yield Example(*parse(record, *self._features))

    def describe(self, part: str, index: int) -> str:
        """See `Source`."""
        return f"record {index} of the {part} split in {self.folder}"


def _open(name: str, root: str) -> Any:
    """The builder of a prepared folder."""
    import tensorflow_datasets as tfds

    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir() or is_remote(name):
            builder = tfds.builder_from_directory(name if is_remote(name) else str(path))
        else:
            builder = tfds.builder(name, data_dir=root)
        prepared = builder.data_path.exists() and builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"{printable(name)} is not prepared in {root}: give --config.data.dir, or the path of the "
            "folder with its dataset_info.json"
        ) from error
    except Exception as error:
        raise unreadable_folder(printable(name), root, error) from error
    if not prepared:
        raise UserError(
            f"{printable(name)} is not prepared in {root}: prepare it with TFDS (tfds build "
            f"{printable(name)}), or give --config.data.dir"
        )
    return builder


def _fingerprint(builder: Any, splits: Sequence[str], features: tuple[str, str]) -> str:
    if is_remote(builder.data_dir):
        return ""
    digest = hashlib.sha256(repr((str(builder.data_dir), features)).encode())
    for split in splits:
        for file in builder.info.splits[split].filepaths:
            status = os.stat(file)
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
