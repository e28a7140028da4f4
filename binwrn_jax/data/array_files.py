"""``npz:PATH``: images and labels in one ``.npz`` file, or in ``.npy`` files of one folder.

    npz:digits.npz           arrays images and labels, or train_images, train_labels, test_images, ...
    npz:FOLDER               files images.npy and labels.npy, or train_images.npy, ...

``x_train`` and ``y_train`` are understood as well. ``class_names`` is optional: an array of texts; labels may
be texts themselves. ``.npy`` files are not loaded as a whole.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.data.dataset import Example
from binwrn_jax.data.source import PARTS
from binwrn_jax.errors import UserError, printable


class ArraySource:
    """A `binwrn_jax.data.source.Source` of arrays.

    Args:
      path: a ``.npz`` file, a folder of ``.npy`` files, or one of them.

    Raises:
      UserError: the file cannot be read, or has not the arrays that are needed; the message names those that
        it has.
    """

    def __init__(self, path: str) -> None:
        self.name = f"npz:{path}"
        self._path = Path(os.path.expanduser(path))
        self.folder = str(self._path)
        if self._path.suffix == ".npy":
            self._path = self._path.parent
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
        arrays = _load(self._path)
        pairs = _pairs(arrays, printable(self.folder))
        names = arrays.get("class_names")
        labels = {part: arrays[label_key] for part, (_, label_key) in pairs.items()}
        self.class_names = _class_names(labels, names, printable(self.folder))
        self._pairs = pairs
        self._checked(arrays)
        self.sizes: Mapping[str, int] = {part: len(labels[part]) for part in pairs}
        used = ", ".join(f"{a} and {b}" for a, b in pairs.values())
        self.notes: Sequence[str] = [f"arrays {used} of {printable(str(self._path))}"]
        self.fingerprint = _fingerprint(self._path)

    def read(self, part: str, indices: Sequence[int]) -> Iterator[Example]:
        """See `Source`."""
        if self._arrays is None:
            self._checked(_load(self._path))
        assert self._arrays is not None
        images, labels = self._arrays[part]
        for index in indices:
            yield Example(np.ascontiguousarray(images[index]), int(labels[index]))

    def describe(self, part: str, index: int) -> str:
        """See `Source`."""
        return f"{self._pairs[part][0]}[{index}] of {printable(self.folder)}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": None}  # each process reads the files itself

    def _checked(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps images as uint8 ``[N, H, W, C]`` and labels as numbers of the classes."""
        self._arrays = {}
        for part, (image_key, label_key) in self._pairs.items():
            images, labels = arrays[image_key], arrays[label_key]
            try:
                images = check_images(images[..., None] if images.ndim == 3 else images)
            except UserError as error:
                raise UserError(f"{image_key} of {printable(self.folder)}: {error}") from None
            if len(images) != len(labels):
                raise UserError(
                    f"{printable(self.folder)} has {len(images)} {image_key} and {len(labels)} "
                    f"{label_key}: give one label for each image"
                )
            if labels.dtype.kind in "US":
                number = {name: i for i, name in enumerate(self.class_names)}
                labels = np.array([number.get(str(text), -1) for text in labels.astype(str)], np.int32)
            self._arrays[part] = images, labels


def _load(path: Path) -> Mapping[str, np.ndarray]:
    where = printable(str(path))
    try:
        if path.is_dir():
            files = sorted(path.glob("*.npy"))
            if not files:
                raise UserError(f"there are no .npy files in {where}: give images.npy and labels.npy")
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array and no archive of several")
            return dict(archive)
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist: give a .npz file or a folder of .npy files") from error
    except OSError as error:
        raise UserError(f"cannot read {where} ({error.strerror or error})") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{where} is no .npz file of numbers and texts, or a damaged one ({reason})"
        ) from error


def _pairs(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, tuple[str, str]]:
    """The names of the arrays of images and labels of each part."""
    found: dict[str, tuple[str, str]] = {}
    for word, part in PARTS.items():
        for pair in ((f"{word}_images", f"{word}_labels"), (f"x_{word}", f"y_{word}")):
            if pair[0] in arrays and pair[1] in arrays:
                if part in found:
                    raise UserError(
                        f"{where} has two arrays of {part} images: {found[part][0]} and {pair[0]}"
                    )
                found[part] = pair
    for pair in (("images", "labels"), ("x", "y")):
        if "train" not in found and pair[0] in arrays and pair[1] in arrays:
            found["train"] = pair
    if "train" not in found:
        names = ", ".join(printable(name) for name in sorted(arrays)) or "none"
        raise UserError(
            f"{where} has no arrays images and labels (or train_images and train_labels); it has: {names}"
        )
    return found


def _class_names(labels: Mapping[str, np.ndarray], names: np.ndarray | None, where: str) -> tuple[str, ...]:
    for part, array in labels.items():
        if array.ndim == 2 and array.shape[1] > 1:
            raise UserError(f"the {part} labels of {where} are one-hot: give integers, labels.argmax(1)")
        if array.ndim != 1:
            raise UserError(f"the {part} labels of {where} have the shape {array.shape}, not [N]")
        if array.dtype.kind not in "iuUS":
            raise UserError(f"the {part} labels of {where} are {array.dtype}: give integers or texts")
    train = labels["train"]
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) != len(names):
            raise UserError(f"class_names of {where} must be one different text for each class")
        return tuple(str(name) for name in names.astype(str))
    if train.dtype.kind in "US":
        return tuple(sorted({str(text) for text in train.astype(str)}))
    if not len(train):
        raise UserError(f"{where} has no images")
    if train.min() == 1:
        raise UserError(f"the train labels of {where} begin at 1: give the numbers from 0 on, labels - 1")
    most = max(int(array.max()) for array in labels.values() if len(array))
    if most > 100_000:
        raise UserError(f"the labels of {where} go up to {most}: give the numbers of the classes, from 0 on")
    return tuple(str(number) for number in range(most + 1))


def _fingerprint(path: Path) -> str:
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    digest = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape"))
    for file in files:
        status = file.stat()
        digest.update(
            f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()
